"""`llm-forget shred`: remove what a run left behind that distils the forget rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json
from llm_forget.utils.terminal import echo


def shred(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be removed")] = False,
    as_json: Json = False,
) -> None:
    """Remove checkpoints, caches and intermediate adapters of a run, and record it.

    Files are overwritten and removed. The record, shredded.json, says what remains and why, and is part of the next statement:
    shred first, then certify.

    \b
    Example:
      llm-forget shred runs/mine
    """
    from llm_forget.certificates.manifest import FOLDER_NAME, STATEMENT_NAME
    from llm_forget.certificates.shred import shred

    found = shred(run, dry_run=dry_run)
    if as_json:
        print_json(found)
        return
    for one in found["removed"]:
        did = "would remove" if dry_run else "removed"
        echo(f"{did} {one['what']}: {one['files']} files, {one['bytes'] / 1e6:.1f} MB ({one['why']})")
    if not found["removed"]:
        echo("nothing to remove")
    for one in found["remains"]:
        echo(f"remains {one['what']}: {one['why']}")
    if not dry_run and (run / FOLDER_NAME / STATEMENT_NAME).is_file():
        echo("the run has a certificate that does not know of this; make a new one with `llm-forget certify`")
