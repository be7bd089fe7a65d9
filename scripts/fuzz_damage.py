"""Seeded damage to files: bytes, JSON and YAML values, numbers in tensors. Used by ``fuzz.py``."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**400, -0.5, 1e30, 1e-30, math.nan, math.inf, -math.inf, "", " ", "0",
    "auto", "null", "../../x", "/", "~", "a" * 5000, "\0", "\ud83d", "{{x}}", "[/b]", "\x1b[2J", "<b>x</b>", [], {}, [1], [[]],
    [None, "x"], {"a": 1}, {"": None}, {"1": {"2": {}}},
]  # fmt: skip
BYTES = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"{",
    b"[",
    b"]}",
    b'"',
    b"NaN",
    b"\x1b[31m",
    b"\xed\xa0\x80",
    b"---",
]
YAML_TEXTS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b, *b, *b, *b]\n",
    "x: &x [*x]\n", "!!python/object/apply:os.system ['true']\n", "2024-99-99", "[" * 3000, "a: " * 50, "\t- a", "? ? ? a",
]  # fmt: skip


def json_values(draw: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one place changed: another value, a missing, renamed, doubled or deeply nested one."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places or draw.random() < 0.03:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    kind = draw.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{key}{draw.choice(['x', ' ', '.', '/../x'])}"] = holder.pop(key)
    elif kind == 2:
        nested: Any = holder[key]
        for _ in range(draw.choice([1, 3, 400])):
            nested = [nested] if draw.random() < 0.5 else {"x": nested}
        holder[key] = nested
    elif kind == 3 and isinstance(holder, list):
        holder.extend(holder[key : key + 1] * draw.choice([1, 50]))
    else:
        holder[key] = draw.choice(VALUES)
    return value


def _places(value: Any) -> Any:
    """(container, key) of each value inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def damage_bytes(draw: random.Random, path: Path) -> str:
    """Change a file's bytes; return what was done."""
    content = bytearray(path.read_bytes())
    kind = draw.choice(["empty", "cut", "flip", "insert", "remove", "repeat", "random"])
    at = draw.randrange(len(content) + 1)
    if kind == "empty":
        content = bytearray()
    elif kind == "cut":
        content = content[:at]
    elif kind == "flip" and content:
        for _ in range(draw.choice([1, 8, 64])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "insert":
        content[at:at] = draw.choice(BYTES)
    elif kind == "remove":
        del content[at : at + draw.choice([1, 10, 1000])]
    elif kind == "repeat":
        content = content[:at] + content
    else:
        content = bytearray(draw.randbytes(draw.choice([1, 100, 5000])))
    path.write_bytes(content)
    return f"{path.name}: {kind}"


def damage_json(draw: random.Random, path: Path) -> str:
    """Change a value in a JSON file, or in one line of a JSON-lines file."""
    lines = (
        path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
    )
    at = draw.randrange(len(lines))
    lines[at] = json.dumps(json_values(draw, json.loads(lines[at])))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{path.name}: a value"


def damage_yaml(draw: random.Random, path: Path) -> str:
    """Change a value in a YAML file, or put a hostile text into it."""
    if draw.random() < 0.15:
        path.write_text(
            draw.choice(YAML_TEXTS) + (path.read_text(encoding="utf-8") if draw.random() < 0.5 else ""),
            encoding="utf-8",
        )
        return f"{path.name}: a text"
    changed = json_values(draw, yaml.safe_load(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(changed), encoding="utf-8")  # JSON is YAML
    return f"{path.name}: a value"


def damage_safetensors(draw: random.Random, path: Path) -> str:
    """Remove, rename, reshape, retype or overwrite a tensor."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    kind = draw.choice(
        ["gone", "renamed", "reshaped", "fp16", "int8", "nan", "scalar", "all gone", "stray", "metadata"]
    )
    value = tensors[name]
    if kind in ("gone", "renamed"):
        del tensors[name]
    if kind == "renamed":
        tensors[draw.choice(["x", f"module.{name}", f"{name}.x", name.replace("model", "m", 1)])] = value
    elif kind == "reshaped":
        tensors[name] = value.reshape(-1)[: max(1, value.numel() // 2)].clone()
    elif kind in ("fp16", "int8"):
        tensors[name] = value.to(torch.float16 if kind == "fp16" else torch.int8)
    elif kind == "nan":
        tensors[name] = torch.full_like(value, math.nan if value.is_floating_point() else 0)
    elif kind == "scalar":
        tensors[name] = torch.tensor(1.0)
    elif kind == "all gone":
        tensors = {"x": torch.zeros(1)}
    elif kind == "stray":
        tensors[f"{name}.stray"] = value.clone()
    elif kind == "metadata":
        metadata = {draw.choice(["format", "x"]): draw.choice(["tf", "", "pt\0", "y" * 1000])}
    save_file(tensors, path, metadata)
    return f"{path.name}: {kind} {name}"


def damage_place(draw: random.Random, path: Path) -> str:
    """Remove a file, or put a folder, a broken link or another file in its place."""
    kind = draw.choice(["gone", "folder", "link", "loop", "other"])
    others = [one for one in sorted(path.parent.iterdir()) if one.is_file() and one != path]
    if kind == "other" and others:
        shutil.copyfile(draw.choice(others), path)
        return f"{path.name}: another file's content"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    return f"{path.name}: {kind}"


def damage(draw: random.Random, path: Path) -> str:
    """Damage one file in a way that suits it."""
    fitting: dict[str, Callable[[random.Random, Path], str]] = {
        ".json": damage_json,
        ".jsonl": damage_json,
        ".yaml": damage_yaml,
        ".safetensors": damage_safetensors,
    }
    how = fitting.get(path.suffix, damage_bytes)
    if draw.random() < 0.3:
        how = damage_bytes if draw.random() < 0.8 else damage_place
    return how(draw, path)
