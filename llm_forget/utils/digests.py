"""SHA-256 digests of weights, texts and JSON values, and the headers of safetensors files.

A digest of weights depends on the names, dtypes, shapes and bytes of the tensors only. The same model saved in one file or in
ten shards has the same digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm_forget.errors import UserError
from llm_forget.utils.weight_files import weight_files

_CHUNK = 1 << 22  # bytes per read
_SETTLED = 3 * 10**9  # nanoseconds since the last change after which a file's times tell any further change
_known: dict[tuple[object, ...], str] = {}

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
    """A tensor in a safetensors file, known from the header.

    Attributes:
        file: the safetensors file.
        dtype: safetensors' name of the dtype, such as ``BF16``.
        shape: its shape.
        start: offset of its first byte in the file.
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
    """SHA-256 of a JSON value, written with sorted keys and no spaces.

    Raises:
        UserError: the value cannot be written as JSON (NaN, infinity, a set, a path, an object).
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"this value cannot be digested: {error}. JSON values are allowed: texts, finite numbers, true, false, null, "
            "lists and mappings. Convert anything else first."
        ) from error
    return text_digest(text)


def weights_digest(source: str | Path | Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in order of name: name, dtype, shape and bytes of each. 64 hex digits.

    Independent of sharding, file names and safetensors metadata. Files are read a few megabytes at a time, and once in a process
    as long as they do not change: a run needs the digest of its base for checkpoints and again for its record.

    Args:
        source: a folder with safetensors weights, one safetensors file, or tensors by name. A state dict lists tied weights
            twice and a saved model once, so digest the folder to compare files.

    Raises:
        UserError: as ``weight_files``; a file is damaged, a name occurs twice, or safetensors has no such dtype.
    """
    digest = hashlib.sha256()
    if isinstance(source, Mapping):
        for name in sorted(source):
            tensor = source[name].detach()
            digest.update(_frame(name, _type_name(name, tensor), tuple(tensor.shape)))
            for part in _tensor_bytes(tensor):
                digest.update(part)
        return digest.hexdigest()
    state = _unchanging(source)
    if state in _known:
        return _known[state]
    for name, stored in sorted(stored_tensors(source).items()):
        digest.update(_frame(name, stored.dtype, stored.shape))
        for chunk in _file_bytes(stored):
            digest.update(chunk)
    if state is not None and state == _unchanging(source):
        _known[state] = digest.hexdigest()
    return digest.hexdigest()


def _unchanging(source: str | Path) -> tuple[object, ...] | None:
    """What changes whenever a file of weights does: its place, size and times. None if one was written only just now.

    Times have a granularity, so a file can be written twice within one tick. Files that are older than that cannot.
    """
    found: list[object] = []
    for file in weight_files(source):
        stat = file.stat()
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < _SETTLED:
            return None
        found.append((str(file.resolve()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)


def stored_tensors(source: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a folder or file, by name. Reads only the headers.

    Raises:
        UserError: as ``weight_files``; a file is damaged, or a name occurs in two files.
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
    """The metadata of a safetensors file; empty if it has none.

    Raises:
        UserError: the header is damaged.
    """
    return _read_header(file)[1]


def _read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of one safetensors file. Its data follow the header without gaps, in the order of the offsets."""
    tensors: dict[str, StoredTensor] = {}
    try:
        with safe_open(file, framework="np") as opened, file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")  # 8 bytes of header length, the header, the data
            for name in opened.offset_keys():
                part = opened.get_slice(name)
                dtype, shape = str(part.get_dtype()), tuple(part.get_shape())
                stop = start + math.prod(shape) * _bits(dtype) // 8
                tensors[name] = StoredTensor(file, dtype, shape, start, stop)
                start = stop
            return tensors, dict(opened.metadata() or {})
    except SafetensorError as error:
        raise _damaged(file, str(error)) from error


def _bits(dtype: str) -> int:
    """Bits of one value: 16 for BF16, 8 for F8_E4M3 and BOOL."""
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged: {reason}. Copy or save it again.")


def _frame(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """The bytes hashed before a tensor's data. They fix its length, so that different lists of tensors cannot collide."""
    return json.dumps([name, dtype, list(shape)], separators=(",", ":")).encode() + b"\n"


def _type_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _TYPE_NAMES:
        raise UserError(
            f"the tensor {name} has type {tensor.dtype}, which safetensors does not support; convert it first."
        )
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
