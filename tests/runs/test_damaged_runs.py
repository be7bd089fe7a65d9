"""A damaged or hostile run is named and passed over: it never takes a comparison down, and costs neither time nor memory."""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import Done, command
from profiles import examples
from run_examples import write_family

from llm_forget.utils.files import write_record

INTERNAL = 3
NESTED = "[" * 30_000 + "]" * 30_000
ODD: list[Any] = [
    None, True, -1, 0, 1, 0.5, 1e308, -1e-320, 2**63, "", "x", "[/nothing]", "\x1b[2J", "\ud83d", "../../x", "a" * 5_000,
    [], {}, [[]], [None], {"": {}}, {"value": "x", "n": 1}, {"value": 1}, [1, "a"], {"a.b": 1, "name": []},
]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a folder with target, oracle and two unlearned runs, with metrics and all optional sections."""
    root = write_family(tmp_path / "runs", said="an answer")
    for run in root.iterdir():
        file = run / "eval" / "tiny.json"
        raw = json.loads(file.read_text())
        entry = {"value": 0.5, "n": 3, "low": 0.4, "high": 0.6}
        raw |= {
            "attacks": {"members": "forget", "nonmembers": "retain", "auc": {"loss": {**entry, "n_nonmembers": 3}}},
            "model_utility": {"arithmetic": entry},
            "perplexity": entry,
            "aggregates": {"new": {**entry, "bounds": [0.0, 1.0]}},
            "controls": {"target": {"sets": raw["sets"], "perplexity": entry}},
            "model": {"weights": f"{run.name:0<64}", "adapter": None, "base": None},
            "warnings": ["a warning"],
        }
        write_record(file, raw)
        moment = {"step": 1, "forget": 0.5, "retain": 0.5}
        result = json.loads((run / "result.json").read_text())
        more = {"before": moment, "after": moment, "details": {"strength": 1.0}, "data_digests": {"forget": "ab"}}
        more |= {"reason": "the last step was reached", "forget_target": 0.2, "utility_floor": 0.5}
        write_record(run / "result.json", {**result, **more})
        rows = [{"phase": "train", "step": step, "loss": 1.0, "forget_loss": 2.0} for step in range(1, 5)]
        rows += [{"phase": "check", "step": 4, "forget": 0.5, "retain": 0.5, "verdict": "KEEP"}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "env.json").write_text(json.dumps({"llm_forget": "0.1.0", "packages": {"torch": "2.6"}}))
    return root


def check(runs: Path, *, named: str | None = None, pages: bool = False) -> Done:
    """Compare the runs, with all pages too on request; nothing may fail inside. A name must be in the notes."""
    found = command("compare", runs, "--json")
    done = [found]
    if pages:
        page = runs.parent / "page.html"
        done += [command("compare", runs, "--to", page), command("report", runs / "grad_ascent", "--to", page)]
        assert done[1].status == done[2].status == 0, "the other runs are shown"
        done.append(command("report", runs / "npo", "--to", page))
    for one in done:
        assert one.status != INTERNAL, one.err
        assert "Traceback" not in one.err
        assert "\x1b" not in one.out + one.err
    assert found.status == 0, found.err
    assert "grad_ascent" in {one["run"] for one in json.loads(found.out)["runs"]}
    assert named is None or named in found.err, found.err
    return found


@pytest.mark.slow
def test_whole_runs_are_not_remarked_upon(runs: Path) -> None:
    found = check(runs, pages=True)
    assert found.err == ""
    assert json.loads(found.out)["notes"] == []


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return lambda run: (run / name).write_bytes(data) and None


def edited(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        raw = json.loads((run / name).read_text())
        change(raw)
        write_record(run / name, raw)

    return edit


def without(pattern: str) -> Callable[[Path], None]:
    return lambda run: [file.unlink() for file in run.glob(pattern)] and None


ALIASES = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{two}: &{two} [{','.join([f'*{one}'] * 9)}]\n" for one, two in zip("abcdefgh", "bcdefghi", strict=True)
)
DAMAGE: dict[str, Callable[[Path], None]] = {
    "no scores": without("eval/*.parquet"),
    "scores cut": lambda run: (
        [file.write_bytes(file.read_bytes()[:100]) for file in run.glob("eval/*.parquet")] and None
    ),
    "results empty": put("eval/tiny.json", ""),
    "results binary": put("eval/tiny.json", b"\xff\x00\x81"),
    "results deep": put("eval/tiny.json", NESTED),
    "results of another schema": edited("eval/tiny.json", lambda raw: raw.update(schema=1)),
    "sets is a list": edited("eval/tiny.json", lambda raw: raw.update(sets=[])),
    "metrics is a text": edited("eval/tiny.json", lambda raw: raw["sets"]["forget"].update(metrics="x")),
    "seconds is a text": edited("eval/tiny.json", lambda raw: raw.update(seconds="long")),
    "seconds is infinite": put("eval/tiny.json", '{"schema": 2, "seconds": Infinity}'),
    "a control of another type": edited("eval/tiny.json", lambda raw: raw["controls"].update(oracle={"sets": 1})),
    "a control's section": edited("eval/tiny.json", lambda raw: raw["controls"]["target"].update(perplexity="x")),
    "the suite is a path": edited("eval/tiny.json", lambda raw: raw.update(suite="../../x")),
    "a value is a text": edited(
        "eval/tiny.json", lambda raw: raw["sets"]["forget"]["metrics"]["probability"].update(value="0.1")
    ),
    "details is a list": edited("result.json", lambda raw: raw.update(details=[1])),
    "before is a text": edited("result.json", lambda raw: raw.update(before="x", after=[1])),
    "run seconds is a list": edited("result.json", lambda raw: raw.update(seconds=[1])),
    "run seconds is huge": put("result.json", '{"method": "npo", "seconds": 1' + "0" * 400 + "}"),
    "run seconds is infinite": put("result.json", '{"method": "npo", "seconds": Infinity}'),
    "result is a list": put("result.json", "[]"),
    "result is deep": put("result.json", '{"method": "npo", "details": ' + NESTED + "}"),
    "result has half a letter": put("result.json", '{"method": "npo", "reason": "\\ud83d", "checksum": "x"}'),
    "recipe with aliases": put("recipe.yaml", ALIASES),
    "recipe with a cycle": put("recipe.yaml", "model: &x [*x]"),
    "recipe deep": put("recipe.yaml", NESTED),
    "recipe with a list as model": put("recipe.yaml", "model: [a, b]\n1: 2\n"),
    "recipe binary": put("recipe.yaml", b"\xff\xfe\x00"),
    "recipe with tags": put("recipe.yaml", "model: !!python/object/apply:os.system [true]"),
    "metrics binary": put("metrics.jsonl", b"\xff\x00"),
    "metrics deep": put("metrics.jsonl", NESTED),
    "metrics with odd steps": put(
        "metrics.jsonl", '{"step": NaN, "loss": 1}\n{"step": "one"}\n{"step": true, "loss": 2}\n'
    ),
    "environment is a text": put("env.json", '"x"'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_one_damaged_run_is_named_and_the_others_are_shown(runs: Path, name: str) -> None:
    DAMAGE[name](runs / "npo")
    start = time.monotonic()
    check(runs, named="npo")
    assert time.monotonic() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_the_pages_of_a_damaged_run_and_its_neighbours(runs: Path, name: str) -> None:
    DAMAGE[name](runs / "npo")
    check(runs, named="npo", pages=True)


def test_odd_values_of_yaml_are_no_damage(runs: Path) -> None:
    text = (
        "model: {name: x, 1: 2, 2024-01-01: 2024-01-02T03:04:05}\ndata: [{a: !!binary aGk=}, !!set {b}]\nx: .inf\ny: 0x"
        + "f" * 300
    )
    (runs / "npo" / "recipe.yaml").write_text(text)
    assert check(runs).err == ""


def test_a_pipe_does_not_hang(runs: Path) -> None:
    import os

    for name in ("recipe.yaml", "metrics.jsonl", "env.json"):
        (runs / "npo" / name).unlink()
        os.mkfifo(runs / "npo" / name)
    os.mkfifo(runs / "npo" / "eval" / "other.json")
    check(runs, named="npo")


def test_a_small_file_takes_little_memory(runs: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("recipe with aliases", "recipe with a cycle", "result is deep", "recipe deep"):
        DAMAGE[name](runs / "npo")
        check(runs)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 300  # MB


# --- random damage -------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


def _mutated(value: Any, draw: random.Random) -> Any:
    """Replace, remove, rename or repeat a few random parts of a value."""
    for _ in range(draw.choice([1, 1, 2, 5])):
        places = [place for place in _places(value) if place]
        if not places:
            return copy.deepcopy(draw.choice(ODD))
        *parents, last = draw.choice(places)
        inside = value
        for key in parents:
            inside = inside[key]
        way = draw.randrange(5)
        if way == 0:
            del inside[last]
        elif way == 1 and isinstance(inside, dict):
            inside[draw.choice(["", "x", "value", "sets", "\x1b[31m", "[b]"])] = inside.pop(last)
        elif way == 2 and isinstance(inside, dict):
            inside[draw.choice(["value", "n", "extra", "model", "<b>"])] = copy.deepcopy(draw.choice(ODD))
        else:
            inside[last] = copy.deepcopy(draw.choice(ODD))
    return value


def damage(run: Path, draw: random.Random) -> None:
    """Damage one random file of a run: its bytes, or the values that it holds."""
    file = draw.choice(sorted(one for one in run.rglob("*") if one.is_file()))
    content = file.read_bytes()
    way = draw.randrange(4)
    if way == 0 and content:
        places = [draw.randrange(len(content)) for _ in range(draw.choice([1, 8]))]
        changed = bytearray(content)
        for place in places:
            changed[place] = draw.randrange(256)
        file.write_bytes(bytes(changed))
    elif way == 1:
        file.write_bytes(draw.choice([b"", content[: draw.randrange(len(content) + 1)], content * 2, b"\x00" * 64]))
    else:
        try:
            _damage_values(file, draw, fitting=way == 2)
        except (ValueError, yaml.YAMLError):  # no values, or damaged before
            file.write_bytes(np.random.default_rng(draw.randrange(1 << 30)).bytes(len(content)))


def _damage_values(file: Path, draw: random.Random, *, fitting: bool) -> None:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        file.write_text(yaml.safe_dump(_mutated(yaml.safe_load(text), draw)))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(_mutated(json.loads(line), draw)) + "\n" for line in text.splitlines()))
    else:
        raw = _mutated(json.loads(text), draw)
        if fitting and isinstance(raw, dict):
            write_record(file, raw)
        else:
            file.write_text(json.dumps(raw))


def _failures(runs: Path, tmp_path: Path, numbers: range, *, pages: bool) -> list[str]:
    """Damage copies of the runs. The seed of a failure is its number: ``damage(run, random.Random(number))``."""
    failed = []
    for number in numbers:
        draw = random.Random(number)
        copied = tmp_path / f"copy-{number}"
        shutil.copytree(runs, copied)
        for name in draw.sample(["npo", "oracle", "target"], draw.choice([1, 1, 2])):
            for _ in range(draw.choice([1, 2, 4])):
                damage(copied / name, draw)
        try:
            check(copied, pages=pages)
        except AssertionError as error:
            failed.append(f"{number}: {str(error)[:500]}")
        shutil.rmtree(copied)
    return failed


@pytest.mark.slow
def test_random_damage_never_fails_inside(runs: Path, tmp_path: Path) -> None:
    assert _failures(runs, tmp_path, range(examples(60)), pages=False) == []


@pytest.mark.slow
def test_random_damage_never_fails_in_the_pages(runs: Path, tmp_path: Path) -> None:
    assert _failures(runs, tmp_path, range(1000, 1000 + examples(20)), pages=True) == []
