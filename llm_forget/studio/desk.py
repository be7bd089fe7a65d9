"""What the screens share: the place, the jobs, whether text is shown in this browser, and how to go to another screen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from llm_forget.data.readers import SUFFIXES
from llm_forget.errors import UserError
from llm_forget.runs import Run, load_run
from llm_forget.studio.jobs import Jobs
from llm_forget.studio.place import Place


@dataclass(frozen=True)
class Desk:
    """Shared by all screens.

    Attributes:
        place: the root folder.
        jobs: its jobs.
        unlocked: gr.State, whether text of the data is shown in this browser; False in every new page.
        started: gr.State, the number of the job that was started last in this page; the screen Run shows it.
        tabs: the screens.
        load: the event of a page that was opened.
    """

    place: Place
    jobs: Jobs
    unlocked: Any
    started: Any
    tabs: Any
    load: Any

    def choose(self, values: list[str], value: str | None = None) -> Any:
        """A dropdown's new choices; the given one stays, else the only one is taken."""
        kept = value if value in values else values[0] if len(values) == 1 else None
        return gr.update(choices=values, value=kept)

    def runs(self, chosen: str | None) -> tuple[Any, str | None]:
        """The runs as a dropdown's choices, and which of them is chosen: the given one, else the newest."""
        names = self.place.list_runs()
        kept = chosen if chosen in names else next(iter(names), None)
        return gr.update(choices=names, value=kept), kept

    def run(self, name: object) -> Run:
        """One run of the list.

        Raises:
            UserError: it is none.
        """
        if not name:
            raise UserError("choose a run first; the screen Run makes one")
        return load_run(self.place.inside(name, what="the run"), str(name))


def uploaded_file(place: Place, uploaded: object) -> Path:
    """The file of an upload.

    Raises:
        UserError: it is no upload of ours, or gone.
    """
    source = Path(str(uploaded)).resolve()
    if not source.is_relative_to(place.uploads.resolve()) or not source.is_file():
        raise UserError("the upload is gone; upload the file again")
    return source


def take_upload(place: Place, uploaded: object) -> str:
    """Move an upload out of the folder for uploads into a file that only the owner may read.

    Returns:
        Its place in the root.

    Raises:
        UserError: it is no upload of ours, or no file with rows.
    """
    place.tidy_uploads()
    source = uploaded_file(place, uploaded)
    try:
        if source.suffix.lower() not in SUFFIXES:
            raise UserError(f"files with rows end in {', '.join(SUFFIXES)}; this one does not")
        stem = "".join(one if one.isalnum() or one in "-_" else "-" for one in source.stem)[:60].strip("-") or "rows"
        folder = place.root / "data"
        folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(1000):
            target = folder / f"{stem}{f'-{number}' if number else ''}{source.suffix.lower()}"
            if not target.exists():
                source.replace(target)
                target.chmod(0o600)
                return place.relative(target)
        raise UserError("there are too many files of this name in data/; give it another name")
    finally:
        source.unlink(missing_ok=True)
        if source.parent != place.uploads and not any(source.parent.iterdir()):
            source.parent.rmdir()
