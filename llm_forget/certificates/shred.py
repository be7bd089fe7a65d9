"""Remove what a run left behind that distils its forget rows, and record what was removed and what remains.

Files are overwritten before they are removed. On SSDs, on file systems that copy on write, and in backups, older versions may
outlive that.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_forget._version import __version__
from llm_forget.certificates.contents import SHREDDED_NAME
from llm_forget.errors import UserError
from llm_forget.runs import Run, load_run
from llm_forget.train.checkpoint import CHECKPOINT_FILES
from llm_forget.utils.files import real_folder, tidy, write_record
from llm_forget.utils.lock import locked
from llm_forget.utils.safe_json import NotPlainJson, read_json
from llm_forget.utils.written import remove_written, written_files

_CHUNK = 1 << 20
_CHECKPOINTS = tuple(
    f"{phase}{dot}step-*/{name}" for phase in ("", "phase-*/") for dot in ("", ".") for name in CHECKPOINT_FILES
)
_CACHE = ("**/*.safetensors",)
PARTS = "parts"  # suffix of the folder next to a run with the adapters that its own was composed of


@dataclass(frozen=True)
class Removed:
    """Something that was removed.

    Attributes:
        what: its place, relative to the run.
        why: why it distils the forget rows.
        files: number of files.
        bytes: their size.
    """

    what: str
    why: str
    files: int
    bytes: int


def shred(folder: Path, *, dry_run: bool = False) -> dict[str, Any]:
    """Remove checkpoints, caches, parts of composed adapters and unfinished files of a run, and write ``shredded.json``.

    Args:
        folder: the run folder.
        dry_run: remove and write nothing.

    Returns:
        The record: ``removed`` and ``remains``.

    Raises:
        UserError: there is no complete run, or another process writes it.
    """
    target = real_folder(folder, "the run")
    run = load_run(target)
    with locked(target, "the run"):
        if not dry_run:
            tidy(target)
        found = list(_parts(target))
        removed = [Removed(_name(place, target), why, *_size(files)) for place, why, _, files in found]
        if not dry_run:
            for place, _, patterns, files in found:
                for file in files:
                    _overwrite(file)
                remove_written(place, patterns)
        earlier = _earlier(target)
        record = {
            "schema": 1,
            "llm_forget": __version__,
            "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "removed": [*earlier, *map(asdict, removed)],
            "remains": list(_remains(run, target)),
        }
        if not dry_run:
            write_record(target / SHREDDED_NAME, record)
    return record


def _parts(target: Path) -> Iterator[tuple[Path, str, Sequence[str], list[Path]]]:
    """Folder, why it is removed, the names in it that commands give, and the files with such names."""
    named = [
        (target.with_name(f"{target.name}.checkpoints"), "states of the training: weights and gradients", _CHECKPOINTS),
        (target.with_name(f"{target.name}.{PARTS}"), "adapters that the served one was composed of", ("**",)),
        (target / "eval" / "cache", "cached scores, and answers if the evaluation kept text", _CACHE),
    ]
    for place, why, patterns in named:
        files = written_files(place, patterns) if place.is_dir() else []
        if files:
            yield place, why, patterns, files


def _name(place: Path, target: Path) -> str:
    """A place relative to the run; the name of one next to it."""
    return place.relative_to(target).as_posix() if place.is_relative_to(target) else place.name


def _size(files: Sequence[Path]) -> tuple[int, int]:
    return len(files), sum(file.lstat().st_size for file in files)


def _overwrite(file: Path) -> None:
    """Overwrite the content of a file with random bytes; a link, and a file with a second name, keep their content."""
    try:
        stat = file.lstat()
        if file.is_symlink() or stat.st_nlink > 1:
            return
        with file.open("r+b", buffering=0) as stream:
            for start in range(0, stat.st_size, _CHUNK):
                stream.write(secrets.token_bytes(min(_CHUNK, stat.st_size - start)))
    except OSError as error:
        raise UserError(f"{file} cannot be overwritten: {error.strerror}; nothing is recorded as removed") from None


def _earlier(target: Path) -> list[Any]:
    """What earlier calls removed."""
    try:
        found = read_json(target / SHREDDED_NAME)["removed"]
    except (NotPlainJson, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []


def _remains(run: Run, target: Path) -> Iterator[dict[str, str]]:
    if (target / "adapter").is_dir():
        yield {
            "what": "adapter",
            "why": "it is what is served, or merged into it; with its base it shows what was forgotten",
        }
    if (target / "model").is_dir():
        yield {"what": "model", "why": "it is what is served"}
    yield {
        "what": "the model before unlearning",
        "why": "it still knows the rows; remove it when nothing is served with it",
    }
    yield {"what": "the forget rows", "why": "training data; needed to test later that they stay forgotten"}
    texts = [name for name, one in run.evaluations.items() if (one.raw.get("scores") or {}).get("text")]
    for name in texts:
        yield {"what": f"answers in eval/{name}", "why": "the evaluation kept generated text; evaluate again without"}
    yield {"what": "scores and attack results by row id", "why": "numbers that the statement rests on; no text"}
    yield {"what": "copies elsewhere", "why": "backups, caches of other programs and other machines are not known here"}
