"""What a person asks for: a model, rows to forget, and whatever else is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_forget.config import UnlearnRecipe
from llm_forget.data.readers import locate
from llm_forget.errors import RecipeError
from llm_forget.utils.build import build
from llm_forget.utils.files import file_digest

SETS = ("forget", "retain", "holdout", "neighbours")
_TAKEN = {"base": "--base MODEL", "output_dir": "--to FOLDER"}
RUN = "forgotten"  # the run's folder; target and oracle lie next to it, where reports look for them


@dataclass(frozen=True)
class Order:
    """One order.

    Attributes:
        model: folder or hub id of the model that knows the rows.
        forget: file of the rows to forget.
        retain: file of rows to keep; None for rows that the model itself supplies.
        holdout: file of rows like the forget rows that no model was trained on.
        neighbours: file of rows to keep that nothing trains on, about people or things like the forgotten ones.
        base: the model before it learned the forget rows.
        oracle: a model, or its run folder, that never saw the forget rows.
        to: folder to write; None for ``runs/`` and the name of the forget file.
        memory: bytes that the run may take; None for what is free.
        changes: fields of a recipe, nested, which are taken as they are.
    """

    model: str
    forget: str
    retain: str | None = None
    holdout: str | None = None
    neighbours: str | None = None
    base: str | None = None
    oracle: str | None = None
    to: str | None = None
    memory: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, option in _TAKEN.items():
            if name in self.changes:
                raise RecipeError(f"--{name} is not an option here; give {option}")
        given = [path for path in (getattr(self, name) for name in SETS) if path is not None]
        twice = sorted({path for path in given if given.count(path) > 1})
        if twice:
            raise RecipeError(f"{', '.join(twice)} is given for two sets; a row cannot be forgotten and kept")

    @property
    def folder(self) -> Path:
        """The folder that is written."""
        return Path(self.to) if self.to else Path("runs") / Path(self.forget).expanduser().stem

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / RUN

    def recipe(self) -> UnlearnRecipe:
        """The recipe of the order before anything is chosen for it.

        Raises:
            RecipeError: lists every mistake.
        """
        named = self.changes.get("model") or {}
        if not isinstance(named, Mapping):
            raise RecipeError(f"model is {named!r}; give the model by --model, and its settings as --model.dtype")
        values: dict[str, Any] = {
            "resume": True,
            **self.changes,
            "model": {**named, "name": self.model},
            "data": self._data(),
            "output_dir": str(self.run),
        }
        if self.base is not None:
            values["base"] = self.base
        return build(UnlearnRecipe, values, "the order")

    def _data(self) -> dict[str, Any]:
        """The recipe's ``data``: the files, with the columns and forms that ``changes`` gives for them."""
        more = self.changes.get("data") or {}
        if not isinstance(more, Mapping) or not all(isinstance(one, Mapping) for one in more.values()):
            raise RecipeError(
                "data holds the settings of each set, for example --data.forget.columns '{question: query}'"
            )
        files = {name: path for name in ("forget", "retain", "holdout") if (path := getattr(self, name))}
        unknown = [name for name in more if name not in (*files, "validation")]
        if unknown:
            raise RecipeError(f"--data.{unknown[0]} is given without --{unknown[0]}; give the file too")
        return {**more, **{name: {**more.get(name, {}), "path": path} for name, path in files.items()}}

    def identity(self) -> dict[str, Any]:
        """What makes an order the same when it is given again: everything but the place, with digests of the files."""
        found = {name: value for name, value in asdict(self).items() if name not in ("to", "memory")}
        for name in SETS:
            path = None if found[name] is None else locate(found[name])
            if path is not None and path.is_file():
                found[name] = file_digest(path)
        return found
