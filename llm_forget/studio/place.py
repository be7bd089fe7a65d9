"""The folder that the studio works in: what is in it, and no path outside it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_forget.data.readers import SUFFIXES
from llm_forget.errors import UserError
from llm_forget.runs.run_files import RECIPE_NAME, RESULT_NAME
from llm_forget.utils.files import is_plain_name

PRIVATE = ".studio"  # jobs, and files on their way; readable by the owner only
_DEPTH, _MOST = 4, 500  # how deep and how many files are listed
_LONGEST = 1000  # characters of a path
_FORGOTTEN = 600  # seconds after which an upload counts as left behind
_SKIPPED = frozenset(("eval", "audit", "certificate", "cells", "node_modules", "__pycache__"))


@dataclass(frozen=True)
class Place:
    """A root folder, and the models outside it that may be used.

    Attributes:
        root: everything that is read and written lies in it.
        models: folders or hub ids of further models, which whoever started the studio allowed.
    """

    root: Path
    models: tuple[str, ...] = ()

    @classmethod
    def at(cls, root: str | Path, models: Sequence[str] = ()) -> Place:
        """Open a folder, with an empty private folder for uploads.

        Raises:
            UserError: it does not exist.
        """
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise UserError(f"--root {root} is no folder; create it, or give another one")
        found = cls(folder.resolve(), tuple(models))
        found.private.mkdir(mode=0o700, exist_ok=True)
        found.private.chmod(0o700)
        found.empty_uploads()
        return found

    @property
    def private(self) -> Path:
        """The studio's own folder."""
        return self.root / PRIVATE

    @property
    def uploads(self) -> Path:
        """Where uploads lie for a moment."""
        return self.private / "uploads"

    def empty_uploads(self) -> None:
        """Remove everything that was uploaded and not moved."""
        shutil.rmtree(self.uploads, ignore_errors=True)
        self.uploads.mkdir(mode=0o700)

    def inside(self, name: object, *, what: str = "the path") -> Path:
        """A path below the root, given relative to it, with links followed.

        Raises:
            UserError: it is empty, absolute, private, or leads out of the root.
        """
        text = str(name or "")
        strange = "\0" in text or "\\" in text or text.startswith("~") or Path(text).is_absolute()
        try:
            found = self.root if strange or len(text) > _LONGEST else (self.root / text).resolve()
        except (OSError, RuntimeError, ValueError):
            found = self.root
        if found == self.root or not found.is_relative_to(self.root) or found.is_relative_to(self.private):
            raise UserError(f"{what} is not inside the studio's folder; choose one from the list")
        return found

    def relative(self, path: Path) -> str:
        """A path as the commands of the studio name it."""
        return path.relative_to(self.root).as_posix()

    def named_in_run(self, path: object) -> str:
        """A path that a run's recipe states, as the studio names it: the commands may have had it from another folder."""
        text = str(path or "")
        return self.relative(Path(text)) if Path(text).is_relative_to(self.root) else text

    def new_folder(self, name: object, parent: str) -> str:
        """The relative path of a folder to write, from a name that a person chose.

        Raises:
            UserError: the name is no plain name.
        """
        text = str(name or "").strip()
        if not is_plain_name(text):
            raise UserError("the name may have letters, digits, spaces, dots and dashes; write one such as request-17")
        return self.relative(self.inside(f"{parent}/{text}", what="the name"))

    def model(self, name: object) -> str:
        """A model that may be used, as the commands name it.

        Raises:
            UserError: it is in no list.
        """
        if name in self.list_models():
            return str(name)
        raise UserError("choose a model from the list; others are allowed with `llm-forget studio --model MODEL`")

    def list_models(self) -> list[str]:
        """Folders with a config and weights, and the models that were allowed."""
        configs = (one for one in self._walk() if one.name == "config.json")
        found = [one.parent for one in configs if any(one.parent.glob("*.safetensors"))]
        return [*dict.fromkeys([*map(self.relative, found), *self.models])]

    def list_data(self) -> list[str]:
        """Files that hold rows, without those that runs write."""
        kept = [one for one in self._walk() if one.suffix.lower() in SUFFIXES and not one.name.endswith(".record.json")]
        return [self.relative(one) for one in kept if not _is_of_a_program(one)]

    def tidy_uploads(self) -> None:
        """Remove uploads that nobody took: the page was closed, or they came from elsewhere."""
        for one in self.uploads.rglob("*"):
            if one.is_file() and time.time() - one.stat().st_mtime > _FORGOTTEN:
                one.unlink(missing_ok=True)

    def list_runs(self) -> list[str]:
        """Run folders of unlearning runs, the newest first."""
        found = [one for one in self._walk() if one.name == RESULT_NAME and (one.parent / RECIPE_NAME).is_file()]
        newest = sorted(found, key=lambda one: -one.stat().st_mtime)
        return [self.relative(one.parent) for one in newest if (one.parent / "adapter").is_dir()]

    def _walk(self, folder: Path | None = None, depth: int = _DEPTH) -> Iterator[Path]:
        """The files of the root; links that lead out of it and hidden folders are left out."""
        try:
            entries = sorted((folder or self.root).iterdir())
        except OSError:
            return
        for entry in entries[:_MOST]:
            if entry.name.startswith(".") or not entry.resolve().is_relative_to(self.root):
                continue
            if entry.is_file():
                yield entry
            elif entry.is_dir() and depth and entry.name not in _SKIPPED:
                yield from self._walk(entry, depth - 1)


def _is_of_a_program(file: Path) -> bool:
    """Whether a JSON or table file belongs to a model, a run or a search and holds no rows."""
    if file.suffix.lower() != ".json":
        return file.name in ("metrics.jsonl", "statements.jsonl")
    marks = ("config.json", "adapter_config.json", "order.json", RESULT_NAME)
    own = file.name == "search.json" or file.name.endswith(".openings.json")
    return own or any((file.parent / one).is_file() for one in marks)
