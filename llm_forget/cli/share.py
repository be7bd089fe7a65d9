"""`llm-forget push` and `llm-forget pull`: share a run on the Hugging Face Hub, and fetch one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.console import Json, print_json, print_table
from llm_forget.utils.terminal import echo

_Repo = Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub")]


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of an unlearning run")],
    repo: _Repo,
    base: Annotated[str | None, typer.Option(metavar="ID", help="hub id of the base, for the card")] = None,
    public: Annotated[bool, typer.Option("--public", help="make a new repository public")] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="include the report, without text")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list every file, and send nothing")] = False,
    as_json: Json = False,
) -> None:
    """Share an adapter with its card, report and evidence. Data are never sent.

    The adapter itself encodes the forget set: whoever gets it may learn from it.
    A new repository is private.

    \b
    Examples:
      llm-forget push runs/mine owner/name --dry-run
      llm-forget push runs/mine owner/name --base HUB_ID_OF_THE_BASE
    """
    from llm_forget.sharing.package import package, size_of

    if dry_run:
        files = package(run, base=base, report=report)
        sizes = {name: size_of(one) for name, one in sorted(files.items())}
        if as_json:
            print_json({"repo": repo, "files": sizes})
            return
        print_table(["file", "bytes"], [[name, str(size)] for name, size in sizes.items()])
        echo(f"{len(sizes)} files would go to {repo}; nothing was sent")
        return
    from llm_forget.sharing.hub import push as send

    address = send(run, repo, base=base, public=public, report=report)
    if as_json:
        print_json({"repo": repo, "commit": address})
        return
    echo(address)


def pull(
    repo: _Repo,
    to: Annotated[Path, typer.Argument(metavar="TO", help="folder to create")],
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="branch, tag or commit")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a shared adapter as a run folder, and check that it is the measured one.

    \b
    Example:
      llm-forget pull owner/name runs/theirs
      llm-forget report runs/theirs
    """
    from llm_forget.sharing.hub import pull as fetch

    found = fetch(repo, to, revision=revision)
    if as_json:
        print_json({"run": str(found)})
        return
    echo(found)
