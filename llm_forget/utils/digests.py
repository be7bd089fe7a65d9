"""What a thing is, in one line of hex: SHA-256 of weights, texts and JSON values.

A digest of weights looks at names, types, shapes and bytes of the tensors, and at nothing else: the same model saved in
one file or in ten, under any file name, has the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_forget.errors import UserError

_CHUNK = 1 << 22  # bytes read or hashed at a time: small beside any model, large beside a disk's block
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself

_TYPE_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies on disk, without having read it.

    Attributes:
        file: the safetensors file.
        dtype: its type in safetensors' words, such as ``BF16``.
        shape: its shape.
        start: first byte, counted from the beginning of the file.
        stop: one past its last byte.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def text_digest(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value in one canonical spelling: sorted keys and no spaces, whatever the order they came in.

    Raises:
        UserError: the value holds something JSON has no word for (NaN, infinity, a set, a path, an object).
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"this value has no digest: {error}. Only what JSON can say is allowed: texts, finite numbers, true, "
            "false, null, lists and mappings; turn anything else into one of these first."
        ) from error
    return text_digest(text)


def weights_digest(source: str | Path | Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in order of name: name, type, shape and raw bytes of each. 64 hex digits.

    Sharding, file names and the safetensors metadata do not enter. A folder is streamed a few megabytes at a time.

    Args:
        source: a folder with safetensors weights, one safetensors file, or tensors in memory by name. A model in memory
            names tied weights twice where a saved one names them once: digest the folder when files are to be compared.

    Raises:
        UserError: no safetensors there, a file is damaged, a name occurs twice, or a tensor has no safetensors type.
    """
    digest = hashlib.sha256()
    if isinstance(source, Mapping):
        for name in sorted(source):
            tensor = source[name].detach()
            digest.update(_frame(name, _type_name(name, tensor), tuple(tensor.shape)))
            for part in _tensor_bytes(tensor):
                digest.update(part)
        return digest.hexdigest()
    for name, stored in sorted(stored_tensors(source).items()):
        digest.update(_frame(name, stored.dtype, stored.shape))
        for chunk in _file_bytes(stored):
            digest.update(chunk)
    return digest.hexdigest()


def stored_tensors(source: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a folder or file, by name, read from the headers alone.

    Raises:
        UserError: no safetensors there, a header is damaged, a file is cut short, or a name occurs in two files.
    """
    found: dict[str, StoredTensor] = {}
    for file in weight_files(source):
        for name, stored in _read_header(file)[0].items():
            if name in found:
                raise UserError(
                    f"the tensor {name} is in both {found[name].file.name} and {file.name}: these are not shards of "
                    "one model. Keep one copy of the weights in the folder."
                )
            found[name] = stored
    return found


def stored_metadata(file: Path) -> dict[str, str]:
    """The free texts in a safetensors file's header, empty where there are none.

    Raises:
        UserError: the header is damaged.
    """
    return _read_header(file)[1]


def weight_files(source: str | Path) -> list[Path]:
    """The safetensors files that make up a model: those its index names, else ``model.safetensors``, else all of them.

    Raises:
        UserError: nothing there, no safetensors file, or a shard that the index names is missing.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a .safetensors file; give the folder that holds the weights.")
    files = _indexed_files(path) or sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{path} holds no .safetensors file. Pickled weights (.bin, .pt) are not read: convert them once with "
            "model.save_pretrained(folder), on a machine where you trust them."
        )
    return files


def _indexed_files(folder: Path) -> list[Path]:
    """The files that Transformers would load; empty where neither its index nor its single file is there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        return [single] if single.is_file() else []
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of shards ({error!r}); fetch or save the model again.") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{index} names shards that are not there: {', '.join(missing)}. Fetch the model again.")
    return [folder / name for name in names]


def _read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of one safetensors file: 8 bytes of length, that many of JSON, then the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_LARGEST_HEADER, size - 8):
            raise _damaged(file, "its header is cut short")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors = {name: _stored(file, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(file, f"its header cannot be read ({error!r})") from error
    longest = max((stored.stop for stored in tensors.values()), default=8 + length)
    if longest > size:
        raise _damaged(file, f"it has {size} bytes where its header promises {longest}")
    return tensors, metadata


def _stored(file: Path, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop:
        raise ValueError(f"offsets {start} to {stop}")
    return StoredTensor(file, str(entry["dtype"]), tuple(entry["shape"]), data_start + start, data_start + stop)


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged: {reason}. Copy or save it again.")


def _frame(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """What precedes a tensor's bytes; shape and type fix their number, so that no two lists of tensors read alike."""
    return json.dumps([name, dtype, list(shape)], separators=(",", ":")).encode() + b"\n"


def _type_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _TYPE_NAMES:
        raise UserError(f"the tensor {name} has type {tensor.dtype}, which safetensors cannot hold; convert it first.")
    return _TYPE_NAMES[tensor.dtype]


def _tensor_bytes(tensor: Tensor) -> Iterator[bytes]:
    flat = tensor.contiguous().cpu().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        yield flat[start : start + _CHUNK].numpy().tobytes()


def _file_bytes(stored: StoredTensor) -> Iterator[bytes]:
    with stored.file.open("rb") as stream:
        stream.seek(stored.start)
        left = stored.stop - stored.start
        while left:
            chunk = stream.read(min(_CHUNK, left))
            if not chunk:
                raise _damaged(stored.file, "it ended while it was being read")
            left -= len(chunk)
            yield chunk
