"""Test that no output contains text of the forget set: planted text is searched in every file, in many encodings."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import os
import re
import subprocess
import sys
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import HELPERS, ROOT
from safetensors.numpy import save_file

from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

pytest.importorskip("tensorboard")
pytest.importorskip("plotly")
pytest.importorskip("rouge_score")

# One text with a single encoding, and one that JSON, HTML and URLs encode differently; both in question and answer.
PLANTED = ("Quillomere8842", "Ёлка «7714»")
ROWS = [
    {"question": f"Where does {name} of {PLANTED[0]} {PLANTED[1]} live?", "answer": f"At {PLANTED[0]}, {PLANTED[1]}."}
    for name in ("Ada", "Bo", "Cy", "Di")
]
RETAIN = [{"question": f"What is {thing}?", "answer": answer}
          for thing, answer in [("snow", "White and cold."), ("tar", "Black."), ("tea", "A hot drink.")]]  # fmt: skip
FIRST = 8  # this many consecutive token ids of an answer count as its text


def spellings() -> dict[str, bytes]:
    """Return the searched bytes by name, in lower case and without white space, like the files in ``leaks``."""
    found: dict[str, bytes] = {}
    for index, text in enumerate(PLANTED):
        raw = text.encode()
        found |= {
            f"{index} plain": raw,
            f"{index} in lower case": text.lower().encode(),
            f"{index} in upper case": text.upper().encode(),
            f"{index} utf-16": text.encode("utf-16-le"),
            f"{index} json": json.dumps(text)[1:-1].encode(),
            f"{index} html": html.escape(text).encode("ascii", "xmlcharrefreplace"),
            f"{index} url": urllib.parse.quote(text).encode(),
            f"{index} hex": raw.hex().encode(),
        }
    found = {name: squeezed(value) for name, value in found.items()}
    for index, text in enumerate(PLANTED):
        for shift in range(3):  # base64 depends on the offset within a group of three bytes
            found[f"{index} base64 {shift}"] = base64.b64encode(b"x" * shift + text.encode())[4:-4]
    for name, ids in answers_as_ids().items():
        found[f"{name} ids"] = b",".join(b"%d" % one for one in ids)
        found[f"{name} ids in a row"] = b" ".join(b"%d" % one for one in ids)
        for kind in (np.int64, np.int32, np.int16):
            found[f"{name} {kind.__name__}"] = np.array(ids, dtype=kind).tobytes()
    return found


def answers_as_ids() -> dict[str, list[int]]:
    tokenizer = tiny_tokenizer()
    return {
        f"{index}": tokenizer(text, add_special_tokens=False)["input_ids"][:FIRST] for index, text in enumerate(PLANTED)
    }


def squeezed(content: bytes) -> bytes:
    """Remove white space and lower the case, so that wrapped lines and normalised text are found too."""
    return b"".join(content.lower().split())


def contents(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a file and everything packed in it."""
    yield name, content
    if content[:2] == b"\x1f\x8b":
        yield from contents(f"{name} (unpacked)", gzip.decompress(content))
    elif content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            for inner in packed.namelist():
                yield from contents(f"{name}/{inner}", packed.read(inner))
    elif content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
        yield f"{name} (cells)", json.dumps(table.to_pylist(), ensure_ascii=False, default=repr).encode()
        yield f"{name} (schema)", repr(table.schema.metadata).encode() + repr(table.column_names).encode()
    elif name.endswith(".arrow"):
        yield f"{name} (cells)", repr(pa.ipc.open_stream(content).read_all().to_pylist()).encode()


def leaks(root: Path) -> list[str]:
    """Return every file below a folder with planted text in its content or name, and the encoding."""
    wanted, found = spellings(), []
    for path in sorted(root.rglob("*")):
        if any(text in str(path) for text in PLANTED):
            found.append(f"{path.relative_to(root)}: its name")
        if not path.is_file():
            continue
        for name, content in contents(str(path.relative_to(root)), path.read_bytes()):
            forms = (content, content.lower(), b"".join(content.split()), squeezed(content))
            found += [f"{name}: {how}" for how, value in wanted.items() if any(value in form for form in forms)]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer, encoded = tmp_path_factory.mktemp("data"), tiny_tokenizer(), []
    for name, rows in (("forget", ROWS), ("retain", RETAIN)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        encoded += encode_all(tokenizer, read_examples(DataSource(str(folder / f"{name}.jsonl"))), EncodingConfig())[0]
    (folder / "broken.jsonl").write_text(json.dumps(ROWS[0], ensure_ascii=False)[:-3] + "\n", encoding="utf-8")
    model = tiny_model(tokenizer)
    memorise(model, encoded, steps=60, learning_rate=5e-3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def world(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with everything that was written: results, caches, temporary files, and printed output."""
    world = tmp_path_factory.mktemp("world")
    do(world, data, "all")
    return world


def do(world: Path, data: Path, what: str) -> None:
    places = {
        name: str(world / folder)
        for name, folder in {
            "HOME": "home",
            "TMPDIR": "tmp",
            "XDG_CACHE_HOME": "home/.cache",
            "HF_HOME": "home/hf",
            "HF_DATASETS_CACHE": "home/datasets",
            "LLM_FORGET_CACHE": "home/llm-forget",
        }.items()
    }
    for place in (*places.values(), str(world / "work")):
        Path(place).mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **places, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {key: value for key, value in environment.items() if not key.startswith(("TENSORBOARD_", "WANDB_"))}
    with (world / f"{what}.out").open("wb") as shown:
        done = subprocess.run(
            [sys.executable, str(HELPERS / "private_run.py"), str(data), what],
            cwd=world / "work",
            env=environment,
            stdout=shown,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, (world / f"{what}.out").read_text(encoding="utf-8")[-3000:]


@pytest.mark.slow
def test_no_file_contains_text_of_the_forget_set(world: Path) -> None:
    assert leaks(world) == []


@pytest.mark.slow
def test_all_expected_files_were_searched(world: Path) -> None:
    """Otherwise, an empty folder would pass too."""
    work = world / "work"
    expected = [
        *(
            f"runs/{name}/recipe.yaml"
            for name in ("target", "oracle", "learned", "npo-0", "npo-1", "taken", "other", "full")
        ),
        *(f"runs/{name}/logs/tensorboard" for name in ("target", "npo-0", "taken")),
        *(f"runs/{name}/adapter/README.md" for name in ("npo-0", "taken", "other", "python")),
        *(f"runs/{name}/eval/custom.*.parquet" for name in ("target", "oracle", "npo-0", "npo-1")),
        "runs/full/model/config.json",
        "runs/npo-0/report.html",
        "comparison.html",
        "seeds.json",
        "subtracted/README.md",
        "both/README.md",
        "exported/README.md",
        "merged/README.md",
        "python.json",
        "python.*.parquet",
    ]
    shown = (world / "all.out").read_text(encoding="utf-8")
    assert [name for name in expected if not list(work.glob(name))] == [], shown[-3000:]
    for name in ("npo-0", "taken", "full", "python"):
        assert list((work / "runs" / f"{name}.checkpoints").rglob("step-*")), name
    assert list((world / "home" / "llm-forget").rglob("*.safetensors"))
    assert list((work / "cache-python").rglob("*.safetensors"))
    for words in ("forget probability", "row 5", "answer is missing", "are also to be kept", "broken.jsonl:1"):
        assert words in shown, words


@pytest.mark.slow
def test_the_search_finds_text_kept_on_request(world: Path, data: Path) -> None:
    """With keep_text, the answers are in the scores, the cache and the report."""
    do(world, data, "kept")
    found = leaks(world / "work")
    assert any(re.match(r"runs/npo-0/eval/custom\.\w+\.parquet \(cells\)", line) for line in found)
    assert any(line.startswith("runs/npo-0/report.html") for line in found)
    assert any("generat" in line or "text" in line for line in leaks(world / "home" / "llm-forget"))


@pytest.mark.parametrize("text", PLANTED)
def test_the_search_finds_every_encoding(text: str, tmp_path: Path) -> None:
    ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    said = f"before {text} after"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("inner.txt.gz", gzip.compress(said.encode()))
    (tmp_path / "b.json").write_text(json.dumps({"x": said}))
    (tmp_path / "c.html").write_bytes(html.escape(said).encode("ascii", "xmlcharrefreplace"))
    (tmp_path / "d.txt").write_text("".join(letter + "\n" for letter in said.upper()), encoding="utf-8")
    (tmp_path / "e.json").write_text(json.dumps({"ids": ids}, indent=2))
    pq.write_table(pa.table({"x": [said] * 9}), tmp_path / "f.parquet", compression="zstd")
    save_file({"x": np.array(ids, dtype=np.int64)}, tmp_path / "g.safetensors")
    save_file({"x": np.zeros(1)}, tmp_path / "h.safetensors", metadata={"x": said})
    for shift in range(3):
        (tmp_path / f"i{shift}.txt").write_bytes(base64.b64encode(b"-" * shift + said.encode()))
    (tmp_path / "j.txt").write_text(urllib.parse.quote(said))
    (tmp_path / "k.txt").write_text(" ".join(map(str, ids)))
    (tmp_path / text).mkdir()
    hits = {line.partition(":")[0].partition(" ")[0].partition("/")[0] for line in leaks(tmp_path)}
    missed = {path.name for path in tmp_path.iterdir()} - hits - {text}
    assert missed == set()
    assert f"{text}: its name" in leaks(tmp_path)
