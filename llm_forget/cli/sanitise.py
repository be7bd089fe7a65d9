"""`llm-forget sanitise`: remove an adapter's effect on rows to keep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.adapters import _Dtype, _Overwrite, _probe, _System, _To, _writes_to
from llm_forget.utils.terminal import echo


@_writes_to
def sanitise(
    to: _To,
    adapter: Annotated[Path, typer.Option(metavar="DIR", help="folder of the adapter")],
    base: Annotated[Path, typer.Option(metavar="DIR", help="folder of the base model")],
    retain: Annotated[str | None, typer.Option(metavar="FILE", help="rows to keep: a file or a hub id")] = None,
    forget: Annotated[
        str | None, typer.Option(metavar="FILE", help="forget rows: asked about other names, they are rows to keep too")
    ] = None,
    weight: Annotated[float, typer.Option(metavar="X", help="weight of rows to keep against forget rows")] = 30.0,
    energy: Annotated[
        float | None,
        typer.Option(metavar="X", help="project instead: share of the inputs' energy that is no longer seen"),
    ] = None,
    virtual: Annotated[int, typer.Option(min=0, metavar="N", help="forget questions about other names")] = 64,
    rescale: Annotated[bool, typer.Option(help="search the strength that forgets as before; needs --forget")] = True,
    target: Annotated[
        float | None, typer.Option(metavar="P", help="forget probability to reach; default: as the adapter before")
    ] = None,
    floor: Annotated[float, typer.Option(metavar="X", help="search: share of the base's probability to keep")] = 0.0,
    maximum: Annotated[float, typer.Option(metavar="X", help="search: largest strength")] = 64.0,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="rows to measure per set")] = 32,
    system_prompt: _System = None,
    dtype: _Dtype = "auto",
    overwrite: _Overwrite = False,
) -> None:
    """Remove an adapter's effect on rows to keep, in closed form.

    Rank, alpha and format stay. With --forget, what forget rows alone need is kept, and scaled until it forgets as before.
    Without it, or with --energy, the directions of rows to keep are projected out.

    \b
    Example:
      llm-forget sanitise --adapter runs/npo/adapter --base MODEL \\
        --forget forget.jsonl --retain retain.jsonl --to clean
    """
    from llm_forget.adapters.card import adapter_card
    from llm_forget.adapters.export import public_name
    from llm_forget.adapters.lora import BaseRecord, load_adapter, save_adapter
    from llm_forget.data.examples import DataSource
    from llm_forget.search.sanitise import sanitise_adapter, summary
    from llm_forget.search.sanitise_base import Rows, SanitiseBase
    from llm_forget.utils.digests import weights_digest

    whole = load_adapter(adapter)
    keep, gone = (None if path is None else DataSource(path) for path in (retain, forget))
    known = SanitiseBase(
        _probe(base, system_prompt, rows, dtype),
        Rows(keep, gone, virtual=virtual),
        lambda text: echo(text, file=sys.stderr),
    )
    found = sanitise_adapter(
        whole, known, energy=energy, weight=weight, rescale=rescale, target=target, floor=floor, maximum=maximum
    )
    results = summary(found)
    echo("\n".join(f"{name}: {value}" for name, value in results.items()))
    recorded = found.adapter.base
    record = BaseRecord(public_name(recorded.name or str(base)), recorded.revision, weights_digest(base))
    first = next(iter(found.adapter.modules.values()))
    how = f"sanitised with weight {weight:g}" if energy is None else f"sanitised, energy {energy:g}"
    card = adapter_card(record, found.adapter.rank, 0.0, 0.0, first.A.dtype, how, results)
    echo(save_adapter(found.adapter, to, card=card, overwrite=overwrite))
