"""Where a suite's data come from: the hub, or files of the same data in a folder; names that its variables fill in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.data.examples import DataSource
from llm_forget.errors import RecipeError

_READABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

if TYPE_CHECKING:
    from llm_forget.evaluation.sets import SetConfig


def with_data(
    name: str, sets: Mapping[str, SetConfig], data_dir: str | None, variables: Mapping[str, str]
) -> tuple[dict[str, SetConfig], list[str]]:
    """Fill in a suite's variables, and take its sets from a folder if one is given.

    Args:
        name: the suite's, for messages.
        sets: as the suite has them.
        data_dir: the folder that holds what the sets call ``file``; None leaves the sets where they are, on the hub.
        variables: what stands for ``{variable}`` in paths, names and splits.

    Returns:
        The sets, and a line for each optional one whose file is not there.

    Raises:
        RecipeError: a variable without value, no such folder, or the files that are not in it, all of them.
    """
    filled = {one: _fill_set(config, variables, f"{name}, sets.{one}") for one, config in sets.items()}
    if data_dir is None:
        here = {one: config for one, config in filled.items() if not _is_absent_file(config)}
        return here, [_left_out(one, filled[one].data.path, "here") for one in filled if one not in here]
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise RecipeError(
            f"data_dir: the folder {data_dir} does not exist; give the one that holds the files of {name}"
        )
    left_out = []
    missing = []
    for one, config in list(filled.items()):
        files = [file for file in (config.file, config.shots_file) if file is not None]
        absent = [file for file in files if not (folder / file).is_file()]
        if absent and config.optional:
            left_out.append(_left_out(one, ", ".join(absent), "in the data folder"))
            del filled[one]
        elif absent:
            missing += [f"{file} (for {one})" for file in absent]
        else:
            filled[one] = _from_folder(config, folder)
    if missing:
        raise RecipeError(
            f"data_dir: {data_dir} lacks {', '.join(missing)}; put them there, or leave data_dir out to read from the hub"
        )
    return filled, left_out


def _is_absent_file(config: SetConfig) -> bool:
    """Whether an optional set is read from a file, and not from the hub, that is not there."""
    path = Path(config.data.path)
    return config.optional and path.suffix in _READABLE and not path.is_file()


def _left_out(name: str, files: str, where: str) -> str:
    return f"the set {name} was left out: {files} is not {where}"


def fill(text: str, variables: Mapping[str, str], where: str) -> str:
    """A text with its variables filled in.

    Raises:
        RecipeError: one that has no value.
    """
    try:
        return text.format_map(dict(variables))
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(variables) or "none"
        raise RecipeError(
            f"{where}: {text} cannot be filled in ({error!r}); the suite's variables are: {known}"
        ) from None


def _fill_set(config: SetConfig, variables: Mapping[str, str], where: str) -> SetConfig:
    if not variables:
        return config

    def one(text: str | None) -> str | None:
        return None if text is None else fill(text, variables, where)

    shots = None if config.shots is None else _fill_source(config.shots, variables, where)
    return replace(
        config,
        data=_fill_source(config.data, variables, where),
        shots=shots,
        file=one(config.file),
        shots_file=one(config.shots_file),
    )


def _fill_source(source: DataSource, variables: Mapping[str, str], where: str) -> DataSource:
    name = None if source.name is None else fill(source.name, variables, where)
    return replace(
        source, path=fill(source.path, variables, where), split=fill(source.split, variables, where), name=name
    )


def _from_folder(config: SetConfig, folder: Path) -> SetConfig:
    if config.file is not None:
        config = replace(config, data=replace(config.data, path=str(folder / config.file), name=None))
    if config.shots is not None and config.shots_file is not None:
        config = replace(config, shots=replace(config.shots, path=str(folder / config.shots_file), name=None))
    return config
