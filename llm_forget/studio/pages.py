"""Pages and files that open in a tab of their own: reports without text, certificates, public keys."""

from __future__ import annotations

import secrets
from functools import lru_cache
from pathlib import Path

from llm_forget.certificates.manifest import FOLDER_NAME, STATEMENT_NAME
from llm_forget.errors import UserError
from llm_forget.studio.place import Place

_MOST = 64 << 20  # bytes of a file


def page_of(place: Place, name: str) -> tuple[str, bytes]:
    """A page of ``/page/``.

    Args:
        place: where it lies.
        name: ``report/RUN``, ``certificate/RUN/PAGE`` or ``key/FILE``.

    Returns:
        Its media type and content.

    Raises:
        UserError: there is no such page.
    """
    kind, _, rest = name.partition("/")
    if kind == "report":
        run = place.inside(rest, what="the run")
        changed = max((one.stat().st_mtime_ns for one in run.rglob("*.json")), default=0)
        return "text/html", _report(place, run, changed)
    if kind == "certificate":
        file = place.inside(rest, what="the certificate")
        found = {".html": "text/html", ".json": "application/json"}.get(file.suffix)
        if file.parent.name == FOLDER_NAME and (found == "text/html" or file.name == STATEMENT_NAME):
            return str(found), _content(file)
    if kind == "key" and rest.endswith(".pub"):
        return "text/plain", _content(place.inside(rest, what="the key"))
    raise UserError("there is no such page")


@lru_cache(maxsize=4)
def _report(place: Place, run: Path, changed: int) -> bytes:
    """The report of a run, made again without text: the one in its folder may hold some."""
    from llm_forget.report.page import write_report

    to = place.uploads / f"{secrets.token_hex(8)}.html"
    try:
        return write_report(run, to, redact=True).read_bytes()
    finally:
        to.unlink(missing_ok=True)


def _content(file: Path) -> bytes:
    if not file.is_file() or file.stat().st_size > _MOST:
        raise UserError("there is no such page")
    return file.read_bytes()
