"""Test that one function decides which files are the model, as Transformers loads them, and refuses folders in doubt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_forget.errors import UserError
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.digests import weights_digest
from llm_forget.utils.weight_files import weight_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(tiny_tokenizer()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_index(folder: Path, *names: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))


def other_weights(folder: Path) -> None:
    save_file({"model.norm.weight": torch.ones(64)}, folder / "other.safetensors")
    rewrite(folder / "config.json", transformers_weights="other.safetensors")


def nested_weights(folder: Path) -> None:
    rewrite(folder / "config.json", text_config={"transformers_weights": "other.safetensors"})


def index_of_others(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    write_index(folder, "a.safetensors")


def embedded_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def distributed(folder: Path) -> None:
    (folder / "shard-00000-model-00001-of-00001.safetensors").write_bytes(b"x")


def pickled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "model.safetensors").unlink()


def pickled_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_index(folder, "pytorch_model-00001.bin")


def other_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def escaping_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model-1.safetensors")
    write_index(folder, "../model-1.safetensors")


def dangling_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_weights, r"transformers_weights: 'other\.safetensors'.*remove the key"),
        (nested_weights, "transformers_weights"),
        (index_of_others, "and an index of other files.*Keep one copy"),
        (embedded_adapter, r"holds a model and an adapter.*folder of their own"),
        (distributed, "distributed checkpoint.*save_pretrained"),
        (pickled, r"no \.safetensors file \(pytorch_model\.bin only\).*never read: convert"),
        (pickled_shards, "which is not a .safetensors file.*convert"),
        (other_name, r"holds model\.fp16\.safetensors, but neither model\.safetensors nor.*Rename"),
        (escaping_shard, "only files of the same folder"),
        (dangling_link, "a link to a file that does not exist"),
        (deep_config, "is not a JSON mapping"),
    ],
)
def test_folders_that_could_be_read_in_two_ways_are_refused(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    change(folder)
    with pytest.raises(UserError, match=message):
        weight_files(folder)


def test_the_files_are_those_that_transformers_loads(folder: Path, tmp_path: Path) -> None:
    """The single file, also with an index of itself; a stray file next to it; links, as in the hub's cache; shards."""
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]
    digest = weights_digest(folder)
    write_index(folder, "model.safetensors")
    (folder / "consolidated.safetensors").write_bytes(b"x")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert weights_digest(folder) == digest
    blob = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(blob)
    assert weights_digest(folder) == digest
    weights = load_file(blob)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:3], names[3:])):
        save_file({name: weights[name] for name in part}, folder / f"part-{number}.safetensors")
    write_index(folder, "part-0.safetensors", "part-1.safetensors")
    assert weights_digest(folder) == digest


def test_an_adapters_folder_has_its_own_file(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"folder of an adapter and holds no adapter_model\.safetensors"):
        weight_files(adapter)
    (folder / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "model.safetensors").write_bytes(b"x")
    assert [file.name for file in weight_files(adapter)] == ["adapter_model.safetensors"]
