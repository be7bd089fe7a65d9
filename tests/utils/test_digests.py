"""Test that digests depend only on the stored content."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llm_forget.errors import UserError
from llm_forget.utils import digests
from llm_forget.utils.digests import json_digest, stored_metadata, stored_tensors, text_digest, weights_digest


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(5, 3, generator=generator).bfloat16(),
        "a.weight": torch.randn(4, 3, generator=generator),
        "a.bias": torch.arange(4, dtype=torch.int64),
        "scalar": torch.tensor(1.5, dtype=torch.float16),
        "empty": torch.zeros(0, 3),
    }


def save_sharded(folder: Path, parts: list[dict[str, Tensor]]) -> Path:
    folder.mkdir()
    weight_map = {}
    for number, part in enumerate(parts):
        name = f"model-{number}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt", "shard": str(number)})
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_text_and_json_have_the_known_values():
    assert text_digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json_digest({"b": 1, "a": [True, None, "é"]}) == text_digest('{"a":[true,null,"é"],"b":1}')


def test_json_digest_ignores_key_order_and_nothing_else():
    assert json_digest({"a": 1, "b": 2}) == json_digest({"b": 2, "a": 1})
    assert json_digest([1, 2]) != json_digest([2, 1])
    assert json_digest(1) != json_digest("1")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("x")])
def test_json_digest_refuses_values_outside_json(value):
    with pytest.raises(UserError, match="cannot be digested"):
        json_digest(value)


def test_weights_digest_by_hand():
    value = torch.tensor([[1.0, 2.0]])
    expected = hashlib.sha256(b'["w","F32",[1,2]]\n' + value.numpy().tobytes()).hexdigest()
    assert weights_digest({"w": value}) == expected


def test_sharding_file_names_order_and_metadata_do_not_matter(tmp_path):
    whole = tensors()
    memory = weights_digest(whole)
    (tmp_path / "one").mkdir()
    save_file(whole, tmp_path / "one" / "model.safetensors")
    names = list(whole)
    parts = [{n: whole[n] for n in names[3:]}, {n: whole[n] for n in names[:3]}]
    assert weights_digest(tmp_path / "one") == memory
    assert weights_digest(tmp_path / "one" / "model.safetensors") == memory
    assert weights_digest(save_sharded(tmp_path / "two", parts)) == memory
    assert weights_digest(dict(reversed(whole.items()))) == memory


def test_a_view_hashes_like_its_contiguous_copy():
    value = torch.arange(12.0).reshape(3, 4).T
    assert weights_digest({"w": value}) == weights_digest({"w": value.contiguous()})


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "a.weight": t["a.weight"] + 1e-6},
        lambda t: {**t, "a.weight": t["a.weight"].reshape(3, 4)},
        lambda t: {**t, "a.bias": t["a.bias"].view(torch.float64)},
        lambda t: {("c" if n == "scalar" else n): v for n, v in t.items()},
        lambda t: {n: v for n, v in t.items() if n != "empty"},
    ],
    ids=["one value", "shape", "type of equal bytes", "name", "one tensor fewer"],
)
def test_any_real_change_changes_it(change):
    assert weights_digest(change(tensors())) != weights_digest(tensors())


def test_large_tensors_are_streamed_in_chunks(tmp_path, monkeypatch):
    before = weights_digest(tensors())
    monkeypatch.setattr("llm_forget.utils.digests._CHUNK", 7)
    save_file(tensors(), tmp_path / "model.safetensors")
    assert weights_digest(tmp_path) == before == weights_digest(tensors())


def test_the_single_file_is_preferred_to_stray_files(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    save_file(tensors(), tmp_path / "consolidated.safetensors")
    assert weights_digest(tmp_path) == weights_digest(tensors())


def test_headers_give_dtypes_shapes_and_metadata(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(tensors(), file, metadata={"note": "x"})
    found = stored_tensors(tmp_path)
    assert {name: (s.dtype, s.shape) for name, s in found.items()} == {
        "b.weight": ("BF16", (5, 3)),
        "a.weight": ("F32", (4, 3)),
        "a.bias": ("I64", (4,)),
        "scalar": ("F16", ()),
        "empty": ("F32", (0, 3)),
    }
    assert stored_metadata(file) == {"note": "x"}


def test_damaged_files_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(tensors(), file)
    whole = file.read_bytes()
    for damaged, message in [
        (whole[:-1], "damaged: .*not fully covered"),
        (whole[:20], "invalid header length"),
        (b"abc", "header too small"),
        (b"\x02\0\0\0\0\0\0\0[]" + whole, "invalid JSON"),
        (b"\x04\0\0\0\0\0\0\0nope", "invalid JSON"),
    ]:
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            weights_digest(tmp_path)


def test_missing_files_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="neither a folder nor"):
        weights_digest(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"save_pretrained"):
        weights_digest(tmp_path)
    folder = save_sharded(tmp_path / "sharded", [{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors"):
        weights_digest(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="not an index"):
        weights_digest(folder)


def test_a_name_in_two_files_is_refused(tmp_path):
    folder = save_sharded(tmp_path / "two", [{"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}])
    index = {"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"both model-0\.safetensors and model-1\.safetensors"):
        weights_digest(folder)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="complex64"):
        weights_digest({"c": torch.zeros(1, dtype=torch.complex64)})


def test_settled_weights_are_read_once_and_changed_ones_again(tmp_path, monkeypatch):
    """The digest of a base is needed several times in a run. A change of the same size, in place, must still be seen."""
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(4)}, file)
    long_ago = time.time() - 60
    reads = []
    real = digests._file_bytes
    monkeypatch.setattr(digests, "_file_bytes", lambda stored: reads.append(stored) or real(stored))
    monkeypatch.setattr(digests, "_SETTLED", 0)
    os.utime(file, (long_ago, long_ago))
    first = weights_digest(tmp_path)
    assert weights_digest(tmp_path) == weights_digest(str(tmp_path)) == first
    assert len(reads) == 1
    time.sleep(0.02)  # a tick of the file system's clock
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x3f")
    os.utime(file, (long_ago, long_ago))  # a change that hides its time
    assert weights_digest(tmp_path) != first
    assert len(reads) == 2


def test_weights_written_only_just_now_are_read_again(tmp_path):
    """A second change within one tick of the clock would not show in the file's times."""
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(4)}, file)
    weights_digest(tmp_path)
    assert not any(str(tmp_path) in str(state) for state in digests._known)
