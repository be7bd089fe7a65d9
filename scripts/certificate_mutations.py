"""Change a certified run at random, one byte or one field at a time, and count what `llm-forget verify` still accepts.

python scripts/certificate_mutations.py RUN --key KEY.pub [--base DIR] [--count 1000] [--seed 0]

The changes are made in a copy. The unchanged copy must be accepted, before and after; every change must alter the content of a
covered file. The exit status is 1 if one change is accepted.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm_forget.certificates.canonical import canonical
from llm_forget.certificates.chain import CHAIN_NAME
from llm_forget.certificates.keys import load_public
from llm_forget.certificates.manifest import FOLDER_NAME, STATEMENT_NAME, covered_files, model_files
from llm_forget.certificates.verify import Places, verify
from llm_forget.utils.files import write_record

Change = Callable[[random.Random], tuple[Path, bytes]]  # gives a file and its new content


class Copied:
    """A copy of a certified run with its chain and base, which can be changed and put back."""

    def __init__(self, run: Path, base: Path | None, chain: Path | None, folder: Path) -> None:
        self.run = folder / run.resolve().name
        shutil.copytree(run, self.run, ignore=shutil.ignore_patterns("cache", "logs"))
        self.chain = folder / CHAIN_NAME
        shutil.copyfile(chain or run.resolve().with_name(CHAIN_NAME), self.chain)
        self.base = None
        if base is not None:
            self.base = folder / "base"
            self.base.mkdir()
            for name in model_files(base):
                shutil.copyfile(base / name, self.base / name)
        self.statement = self.run / FOLDER_NAME / STATEMENT_NAME
        self.covered = [self.run / name for name in covered_files(self.run)]

    def accepted(self, key: Any) -> bool:
        """What verify says."""
        return verify(self.run, [key], Places(base=self.base, chain=self.chain)).accepted

    def changes(self) -> dict[str, Change]:
        """Kind → a random change of that kind."""
        weights = [path for path in self.covered if path.suffix == ".safetensors"]
        scores = [path for path in self.covered if path.suffix == ".parquet"]
        records = [path for path in self.covered if path.suffix == ".json"]
        kinds: dict[str, Change] = {
            "statement, one byte": lambda draw: one_byte(self.statement, draw),
            "statement, one field": lambda draw: one_field_signed(self.statement, 0, draw),
            "envelope, one field": lambda draw: one_field_of_envelope(self.statement, 0, draw),
            "chain, one byte": lambda draw: one_byte(self.chain, draw),
            "chain, one field": lambda draw: one_field_signed(self.chain, None, draw),
            "chain, one line": lambda draw: one_line(self.chain, self.statement, draw),
            "run folder, one byte": lambda draw: one_byte(draw.choice(self.covered), draw),
            "run folder, one field with a fitting checksum": lambda draw: one_field(draw.choice(records), draw),
            "adapter or model, one byte": lambda draw: one_byte(draw.choice(weights), draw),
            "scores, one byte": lambda draw: one_byte(draw.choice(scores), draw),
        }
        if self.base is not None:
            files = sorted(self.base.iterdir())
            kinds["base, one byte"] = lambda draw: one_byte(draw.choice(files), draw)
        return kinds


def one_byte(path: Path, draw: random.Random) -> tuple[Path, bytes]:
    """Change, insert or remove a byte."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    kind = draw.choice(("flip", "flip", "set", "insert", "remove"))
    if kind == "flip":
        content[place] ^= 1 << draw.randrange(8)
    elif kind == "set":
        content[place] = (content[place] + draw.randrange(1, 256)) % 256
    elif kind == "insert":
        content.insert(place, draw.randrange(256))
    else:
        del content[place]
    return path, bytes(content)


def one_field(path: Path, draw: random.Random) -> tuple[Path, bytes]:
    """Change a value in a JSON file, with a fitting checksum if it has one."""
    values = json.loads(path.read_text())
    change_leaf({key: values[key] for key in values if key != "checksum"} if isinstance(values, dict) else values, draw)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "record.json"
        if isinstance(values, dict) and "checksum" in values:
            write_record(copy, values)
        else:
            copy.write_text(json.dumps(values))
        return path, copy.read_bytes()


def one_field_signed(path: Path, line: int | None, draw: random.Random) -> tuple[Path, bytes]:
    """Change a value in the payload of an envelope, and leave its signatures."""
    lines, line, envelope = _envelope(path, line, draw)
    payload = json.loads(base64.b64decode(envelope["payload"]))
    change_leaf(payload, draw)
    envelope["payload"] = base64.b64encode(canonical(payload)).decode()
    lines[line] = canonical(envelope)
    return path, b"\n".join(lines)


def one_field_of_envelope(path: Path, line: int | None, draw: random.Random) -> tuple[Path, bytes]:
    """Change a value around the payload: type, key id or signature; or add a field."""
    lines, line, envelope = _envelope(path, line, draw)
    around = {key: value for key, value in envelope.items() if key != "payload"}
    if draw.random() < 0.2:
        around[f"x{draw.randrange(100)}"] = 1
    else:
        change_leaf(around, draw)
    lines[line] = canonical({**around, "payload": envelope["payload"]})
    return path, b"\n".join(lines)


def one_line(chain: Path, statement: Path, draw: random.Random) -> tuple[Path, bytes]:
    """Remove, repeat or swap a line of the chain, up to the statement itself; newer lines may be missing in an older copy."""
    lines = chain.read_bytes().splitlines()
    last = lines.index(statement.read_bytes().removesuffix(b"\n"))
    place = draw.randrange(last + 1)
    kind = draw.choice(("remove", "repeat", "swap"))
    if kind == "remove":
        del lines[place]
    elif kind == "repeat" or last == 0:
        lines.insert(place, lines[place])
    else:
        other = (place + 1) % (last + 1)
        lines[place], lines[other] = lines[other], lines[place]
    return chain, b"".join(line + b"\n" for line in lines)


def _envelope(path: Path, line: int | None, draw: random.Random) -> tuple[list[bytes], int, dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    chosen = draw.randrange(len(lines) - 1) if line is None else line
    return lines, chosen, json.loads(lines[chosen])


def change_leaf(values: Any, draw: random.Random) -> None:
    """Change a random value in nested lists and mappings, in place."""
    holder, key = draw.choice(list(_leaves(values)))
    before = holder[key]
    if isinstance(before, bool) or before is None:
        holder[key] = 1 if before is None else not before
    elif isinstance(before, int | float):
        holder[key] = before + draw.choice((1, -1, 0.25))
    elif isinstance(before, str):
        place = draw.randrange(len(before) + 1)
        holder[key] = before[:place] + draw.choice("abcxyz0189") + before[place:]
    else:  # an empty list or mapping
        holder[key] = "x"


def _leaves(values: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(item, dict | list) and item:
            yield from _leaves(item)
        else:
            yield values, key


def count_accepted(
    run: Path, key: Any, *, base: Path | None = None, chain: Path | None = None, count: int = 1000, seed: int = 0
) -> tuple[Counter[str], Counter[str]]:
    """Make changes and verify each.

    Returns:
        Kind → number of changes, and kind → number of those that were accepted.

    Raises:
        RuntimeError: the unchanged run is not accepted.
    """
    tried: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="llm-forget-") as scratch:
        copied = Copied(run, base, chain, Path(scratch))
        _must_hold(copied, key)
        kinds = copied.changes()
        draw = random.Random(seed)
        while tried.total() < count:
            kind = list(kinds)[tried.total() % len(kinds)]
            path, content = kinds[kind](draw)
            before = path.read_bytes()
            if content == before:
                continue
            path.write_bytes(content)
            tried[kind] += 1
            accepted[kind] += copied.accepted(key)
            path.write_bytes(before)
        _must_hold(copied, key)
    return tried, accepted


def _must_hold(copied: Copied, key: Any) -> None:
    if not copied.accepted(key):
        raise RuntimeError("the unchanged run is not accepted")


def main() -> None:
    """Count, print and exit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--chain", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tried, accepted = count_accepted(
        given.run, load_public(given.key), base=given.base, chain=given.chain, count=given.count, seed=given.seed
    )
    for kind in tried:
        print(f"{kind}: {tried[kind]} changes, {accepted[kind]} accepted")
    print(f"all: {tried.total()} changes, {accepted.total()} accepted")
    sys.exit(1 if accepted.total() else 0)


if __name__ == "__main__":
    main()
