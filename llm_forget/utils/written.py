"""Tell the files that a command wrote from those that a user added to them, by their names. Only the former are removed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "README.md")
# A model's folder also has the files of its tokenizer, which have many names.
_MODEL = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.py", "vocab.txt", "merges.txt", "README.md"),
    "additional_chat_templates/*.jinja",
)
TRACKED = ("tensorboard/**/events.out.tfevents.*", "tensorboard/**/hparams.yml", "wandb/**", "mlflow/**")
_RUN = (
    *("recipe.yaml", "env.json", "metrics.jsonl", "result.json", "report.html", "comparison.html"),
    *("search.json", "search_again.json"),
    *(f"adapter/{name}" for name in _ADAPTER),
    *(f"model/{name}" for name in _MODEL),
    *(f"logs/{name}" for name in TRACKED),
    *("eval/*.json", "eval/*.parquet", "eval/cache/**/*.safetensors"),
    *("audit/audit.json", "audit/cells/*.json", "shredded.json", "certificate/**"),
)
# A certificate is replaced as a whole: a file of an older one next to it would be one that was not certified.
_CERTIFICATE = ("**",)
# A file that only this kind of folder has → what a command writes to it. The first that exists counts.
_KINDS = (
    ("statement.dsse.json", _CERTIFICATE),
    ("result.json", _RUN),
    ("adapter_config.json", _ADAPTER),
    ("config.json", _MODEL),
)
_UNFINISHED = re.compile(r"\..+\.(\w+-)?\d+-[0-9a-f]{8}(\.new|\.old)?")


def foreign_files(folder: Path) -> list[Path]:
    """The files of a result folder with names that no command gives. In a folder of an unknown kind, all of them."""
    patterns = next((names for mark, names in _KINDS if (folder / mark).is_file()), ())
    return [
        path for path in _files(folder) if not _matches(path, folder, patterns) and not _UNFINISHED.fullmatch(path.name)
    ]


def keep_foreign(old: Path, target: Path) -> None:
    """Move the files that no command wrote from a replaced folder to the new one, if it has none of the same name."""
    for path in foreign_files(old):
        place = target / path.relative_to(old)
        if not place.exists() and not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)


def what_is_replaced(folder: Path) -> tuple[list[str], list[str]]:
    """What replacing a result folder removes, as names at its top level, and what it keeps, as paths of files."""
    foreign = set(foreign_files(folder))
    removed = {path.relative_to(folder).parts[0] for path in _files(folder) if path not in foreign}
    return sorted(removed), sorted(path.relative_to(folder).as_posix() for path in foreign)


def written_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that ``remove_written`` would remove."""
    return [
        path for path in _files(folder) if _matches(path, folder, tuple(patterns)) or _UNFINISHED.fullmatch(path.name)
    ]


def remove_written(folder: Path, patterns: Sequence[str]) -> bool:
    """Remove the files that match, and the folders that are empty afterwards.

    Args:
        folder: the folder; a link to one is emptied and stays.
        patterns: paths below it; ``*`` stands for any characters but ``/``, ``**`` for any at all.

    Returns:
        Whether files are left.
    """
    for path in written_files(folder, patterns):
        path.unlink(missing_ok=True)
    for root, folders, _ in os.walk(folder, topdown=False):
        for name in folders:
            _remove_if_empty(Path(root) / name)
    _remove_if_empty(folder)
    return bool(_files(folder))


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # not empty, or a link
        return


def _files(folder: Path) -> list[Path]:
    """All files and links below a folder; links to folders are not followed."""
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        found += [Path(root) / name for name in files]
        found += [Path(root) / name for name in folders if (Path(root) / name).is_symlink()]
    return found


def _matches(path: Path, folder: Path, patterns: tuple[str, ...]) -> bool:
    return _expression(patterns).fullmatch(path.relative_to(folder).as_posix()) is not None


@cache
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    parts = (
        re.escape(one).replace(r"/\*\*/", "/(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
        for one in patterns
    )
    return re.compile("|".join(parts) or "(?!)", re.DOTALL)
