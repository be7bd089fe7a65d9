"""Data sources that can be read from the hub or, without network access, from files in a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llm_forget.data.examples import DataSource
from llm_forget.data.readers import SUFFIXES
from llm_forget.errors import RecipeError


def in_folder(source: DataSource, data_dir: str | None) -> DataSource:
    """Point a source at its file in a folder.

    Args:
        source: a source; without ``file`` it is returned unchanged.
        data_dir: the folder; None returns the source unchanged.

    Returns:
        The source with ``path`` set to the file. The hub configuration is removed, because a file has none.
    """
    if data_dir is None or source.file is None:
        return source
    found = _in_folder(data_dir, source.file) or Path(data_dir).expanduser() / source.file
    return replace(source, path=str(found), name=None)


def _in_folder(data_dir: str, file: str) -> Path | None:
    """The file in the folder, under its own suffix or another that is read: TOFU's files are JSON lines named ``.json``."""
    wanted = Path(data_dir).expanduser() / file
    others = [wanted.with_suffix(suffix) for suffix in SUFFIXES] if wanted.suffix.lower() in SUFFIXES else []
    return next((path for path in (wanted, *others) if path.exists()), None)


def resolve_sources(
    sets: Mapping[str, Sequence[DataSource]], data_dir: str | None, owner: str
) -> tuple[dict[str, list[DataSource]], list[str]]:
    """Decide for each set whether it is read from the hub or from ``data_dir``, and leave out optional sets without data.

    Args:
        sets: set name → the sources it needs. The first source decides whether the set is optional.
        data_dir: the folder that holds the sources' ``file``; None reads from ``path``.
        owner: the recipe or suite, for messages.

    Returns:
        The sets with resolved sources, and one note for each optional set that was left out.

    Raises:
        RecipeError: ``data_dir`` does not exist, no source names a file in it, or files are missing (all are listed).
    """
    every = [source for sources in sets.values() for source in sources]
    if data_dir is not None:
        if not Path(data_dir).expanduser().is_dir():
            raise RecipeError(
                f"data_dir: the folder {data_dir} does not exist; give the one that holds the files of {owner}"
            )
        if every and all(source.file is None for source in every):
            raise RecipeError(
                f"data_dir is {data_dir}, but no data source of {owner} names a file in it; add `file` to the sources, or "
                "leave data_dir out"
            )
    place = "the current folder" if data_dir is None else "the data folder"
    found: dict[str, list[DataSource]] = {}
    notes: list[str] = []
    missing: list[str] = []
    for name, sources in sets.items():
        absent = [file for source in sources if (file := _absent_file(source, data_dir)) is not None]
        if absent and sources[0].optional:
            notes.append(f"the set {name} was left out: {', '.join(absent)} is not in {place}")
            continue
        if data_dir is not None:
            missing += [f"{file} (for {name})" for file in absent]
        # Without data_dir, a required file that is missing is reported when it is read, with the nearest names.
        found[name] = [in_folder(source, data_dir) for source in sources]
    if missing:
        raise RecipeError(
            f"data_dir: {data_dir} lacks {', '.join(missing)}; put them there, or leave data_dir out to read from the hub"
        )
    return found, notes


def _absent_file(source: DataSource, data_dir: str | None) -> str | None:
    """The file that a source would be read from, if it does not exist; None for an existing file or a hub id."""
    if data_dir is not None:
        absent = source.file is not None and _in_folder(data_dir, source.file) is None
        return source.file if absent else None
    path = Path(source.path).expanduser()
    return source.path if path.suffix.lower() in SUFFIXES and not path.exists() else None
