"""`llm-forget subtract` and `llm-forget compose`: arithmetic on adapters as files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.errors import AdapterError
from llm_forget.utils.terminal import echo

if TYPE_CHECKING:
    from llm_forget.adapters.lora import Adapter
    from llm_forget.search.behaviour import Behaviour, Probe
    from llm_forget.search.strength import SearchResult
    from llm_forget.stop import Measurement

_To = Annotated[Path, typer.Option("--to", metavar="DIR", help="folder to create")]
_Rank = Annotated[int | None, typer.Option(metavar="N", help="truncate to this rank by SVD; default: exact")]
_Base = Annotated[
    Path | None, typer.Option(metavar="DIR", help="folder of the base model, to record its digest and to measure on")
]
_SameBase = Annotated[
    bool, typer.Option("--assume-same-base", help="skip the check that all adapters were made for one base")
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an existing adapter")]
_Retain = Annotated[str | None, typer.Option(metavar="FILE", help="retain rows: a file or a hub id")]
_Rows = Annotated[int, typer.Option(min=1, metavar="N", help="rows to measure per set")]
_System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="system prompt, as in the recipe; '' for an empty one")
]
_Dtype = Annotated[str, typer.Option(metavar="NAME", help="dtype of the base: auto, float32 or bfloat16")]


def _writes_to(command: Callable[..., None]) -> Callable[..., None]:
    """Run a command with its ``--to`` folder checked and locked, so that nothing is measured in vain."""

    @wraps(command)
    def locked(**given: Any) -> None:
        from llm_forget.utils.output import writing

        with writing(given["to"], "--to"):
            command(**given)

    return locked


@_writes_to
def subtract(
    to: _To,
    adapter: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="adapter folder to add; repeatable")] = None,
    minus: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="adapter folder to subtract; repeatable")
    ] = None,
    strength: Annotated[float | None, typer.Option(metavar="X", help="factor for the result; default: 1")] = None,
    rank: _Rank = None,
    base: _Base = None,
    search: Annotated[bool, typer.Option("--search", help="choose the strength by measuring on --base")] = False,
    forget: Annotated[str | None, typer.Option(metavar="FILE", help="search: forget rows")] = None,
    retain: _Retain = None,
    validation: Annotated[
        str | None, typer.Option(metavar="FILE", help="search: rows for the utility floor; default: --retain")
    ] = None,
    holdout: Annotated[
        str | None, typer.Option(metavar="FILE", help="search: unseen rows, which set the target")
    ] = None,
    target: Annotated[float | None, typer.Option(metavar="P", help="search: forget probability to reach")] = None,
    floor: Annotated[float, typer.Option(metavar="X", help="search: share of the retain probability to keep")] = 0.95,
    groups: Annotated[
        int, typer.Option(metavar="N", help="search: number of layer groups with their own strength")
    ] = 1,
    maximum: Annotated[float, typer.Option(metavar="X", help="search: largest strength")] = 8.0,
    tries: Annotated[int, typer.Option(metavar="N", help="search: number of bisections")] = 6,
    rows: _Rows = 32,
    system_prompt: _System = None,
    dtype: _Dtype = "auto",
    assume_same_base: _SameBase = False,
    overwrite: _Overwrite = False,
) -> None:
    """Subtract, negate or scale adapters.

    Writes strength × (sum of --adapter − sum of --minus) as one adapter. --search takes the smallest strength that reaches the
    forget target above the utility floor. If none does, it takes the largest strength above the floor.

    \b
    Examples:
      llm-forget subtract --minus learned --strength 2 --to forgetting
      llm-forget subtract --adapter good --minus bad --rank 16 --to better
    """
    plus, less = adapter or [], minus or []
    direction = _sum(plus, less, assume_same_base)
    method = f"sum of {len(plus)} adapters minus {len(less)}"
    results: dict[str, object] = {}
    if search:
        from llm_forget.search.strength import Limits, search_adapter

        if strength is not None:
            raise AdapterError(
                "--strength and --search given; the search chooses the strength, so leave one of them out."
            )
        data = _search_data(base, forget, retain, validation, holdout)
        limits = Limits(target=target, utility_floor=floor, maximum=maximum, tries=tries, groups=groups)
        found = search_adapter(direction, _probe(base, system_prompt, rows, dtype), data, limits, _tell)
        results = _search_results(found)
        result = found.adapter
        echo("\n".join(f"{name}: {value}" for name, value in results.items()))
    else:
        from llm_forget.adapters.arithmetic import negate, scale

        given = 1.0 if strength is None else strength
        unused = [
            name
            for name, value in (("--forget", forget), ("--validation", validation), ("--holdout", holdout))
            if value
        ]
        if unused or groups != 1:
            raise AdapterError(
                f"{', '.join(unused) or '--groups'} given without --search; add --search, or leave them out."
            )
        if given == 0:
            raise AdapterError("--strength 0 changes nothing; give another number, or use the base itself.")
        result = negate(direction) if given == -1 else scale(direction, given)
        results = {"strength": given}
    _write(result, to, rank, base, method, results, overwrite)


@_writes_to
def compose(
    adapter: Annotated[list[Path], typer.Option(metavar="DIR", help="adapter folder; give two or more")],
    to: _To,
    rank: _Rank = None,
    base: _Base = None,
    forget: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="forget rows: one file per adapter, or one for all")
    ] = None,
    retain: _Retain = None,
    rows: _Rows = 32,
    system_prompt: _System = None,
    dtype: _Dtype = "auto",
    assume_same_base: _SameBase = False,
    overwrite: _Overwrite = False,
) -> None:
    """Add several adapters into one and measure their interference.

    Prints how far their changes overlap. With --base, --forget and --retain it also measures each adapter alone and all of them
    together. The order of the adapters does not matter.

    \b
    Example:
      llm-forget compose --adapter runs/npo/adapter \\
        --adapter runs/other/adapter --to both
    """
    from llm_forget.adapters.arithmetic import truncate
    from llm_forget.adapters.compose import adapter_digest, overlaps
    from llm_forget.adapters.compose import compose as stack
    from llm_forget.adapters.lora import load_adapter

    if (forget and base is None) or (retain and not forget):
        raise AdapterError("to measure answers, give --base and --forget, and optionally --retain.")
    parts = [load_adapter(folder) for folder in adapter]
    whole = stack(parts, assume_same_base=assume_same_base)
    names = [str(folder) for folder in adapter]
    results: dict[str, object] = {}
    for (one, other), found in overlaps(dict(zip(names, parts, strict=True))).items():
        worst = max(found.cosines, key=lambda module: abs(found.cosines[module]), default="no common module")
        echo(
            f"{one} and {other}: cosine {found.cosine:+.3f}, shared inputs {found.shared_inputs:.3f}; largest in {worst}"
        )
    for index, digest in enumerate(sorted(map(adapter_digest, parts)), 1):
        results[f"adapter {index} (digest)"] = digest[:16]
    if forget:
        from llm_forget.data.examples import DataSource
        from llm_forget.search.behaviour import compare_behaviour

        shown = truncate(whole, rank).adapter if rank else whole
        sources = [DataSource(path) for path in forget]
        kept = DataSource(retain) if retain else None
        behaviour = compare_behaviour(_probe(base, system_prompt, rows, dtype), parts, shown, sources, kept)
        _show_behaviour(behaviour, names)
        results |= {f"forget probability, set {i}": now.forget for i, now in enumerate(behaviour.together, 1)}
        if behaviour.together[0].retain is not None:
            results["retain probability"] = behaviour.together[0].retain
    _write(whole, to, rank, base, f"sum of {len(parts)} adapters", results, overwrite)


def _sum(plus: Sequence[Path], less: Sequence[Path], assume_same_base: bool) -> Adapter:
    from llm_forget.adapters.arithmetic import combine, negate, norm
    from llm_forget.adapters.base_layers import check_recorded_base
    from llm_forget.adapters.lora import load_adapter

    if not plus and not less:
        raise AdapterError("no adapter given; give folders with --adapter (to add) or --minus (to subtract).")
    parts = [load_adapter(folder) for folder in (*plus, *less)]
    for part in parts:
        check_recorded_base(part)
    if len(parts) == 1:
        return negate(parts[0]) if less else parts[0]
    result = combine(parts, [1.0] * len(plus) + [-1.0] * len(less), assume_same_base=assume_same_base)
    if norm(result) <= 1e-6 * max(map(norm, parts)):
        raise AdapterError("the added and subtracted adapters cancel out, so nothing is left; give different adapters.")
    return result


def _probe(base: Path | None, system_prompt: str | None, rows: int, dtype: str) -> Probe:
    from llm_forget.config import ModelConfig
    from llm_forget.data.encode import EncodingConfig
    from llm_forget.search.behaviour import Probe
    from llm_forget.utils.build import build

    model = build(ModelConfig, {"name": str(base), "dtype": dtype}, "--base and --dtype")
    return Probe(model, EncodingConfig(system_prompt=system_prompt), rows)


def _search_data(
    base: Path | None, forget: str | None, retain: str | None, validation: str | None, holdout: str | None
) -> Any:
    from llm_forget.config import UnlearnData
    from llm_forget.data.examples import DataSource

    missing = [name for name, value in (("--base", base), ("--forget", forget)) if value is None]
    if not retain and not validation:
        missing.append("--retain or --validation")
    if missing or forget is None:
        raise AdapterError(f"--search also needs {', '.join(missing)}: it measures forget and retain rows.")
    given = {"retain": retain, "validation": validation, "holdout": holdout}
    return UnlearnData(DataSource(forget), **{name: DataSource(path) for name, path in given.items() if path})


def _tell(strengths: tuple[float, ...], now: Measurement) -> None:
    kept = "" if now.retain is None else f", retain {now.retain:.3f}"
    echo(f"strength {_numbers(strengths)}: forget {now.forget:.3f}{kept}", file=sys.stderr)


def _search_results(found: SearchResult) -> dict[str, object]:
    reached = "reached" if found.after.forget <= found.target else "not reached above the floor"
    if found.before.forget <= found.target:
        reached = "not known before: the base is at or below it without the adapter, so there was nothing to forget"
    results: dict[str, object] = {
        "strength": _numbers(found.strengths),
        "forget probability before": round(found.before.forget, 4),
        "forget probability after": round(found.after.forget, 4),
        "forget target": f"{found.target:.4f}, {reached}",
    }
    if found.groups:
        results["groups of layers"] = " | ".join(_layers(group) for group in found.groups)
    if found.before.retain is not None and found.after.retain is not None and found.floor is not None:
        results["retain probability before"] = round(found.before.retain, 4)
        results["retain probability after"] = f"{found.after.retain:.4f} (floor {found.floor:.4f})"
    return results


def _layers(group: Sequence[int]) -> str:
    return str(group[0]) if len(group) == 1 else f"{group[0]}–{group[-1]}"


def _numbers(strengths: Sequence[float]) -> str:
    return " / ".join(f"{strength:.4g}" for strength in strengths)


def _show_behaviour(behaviour: Behaviour, names: Sequence[str]) -> None:
    def line(name: str, row: Sequence[Measurement]) -> str:
        kept = "" if row[0].retain is None else f" · retain {row[0].retain:.3f}"
        return f"{name}: forget {' / '.join(f'{now.forget:.3f}' for now in row)}{kept}"

    echo(line("base", behaviour.base))
    for name, row in zip(names, behaviour.alone, strict=True):
        echo(line(f"{name} alone", row))
    echo(line("together", behaviour.together))
    echo(f"interference: forget probability together minus its adapter alone, at most {behaviour.remembered:+.3f}")
    if behaviour.retain_lost is not None:
        together, summed = behaviour.retain_lost
        echo(f"interference: retain probability lost together {together:.3f}, summed over the adapters {summed:.3f}")


def _write(
    adapter: Adapter,
    to: Path,
    rank: int | None,
    base: Path | None,
    method: str,
    results: Mapping[str, object],
    overwrite: bool,
) -> None:
    """Write an adapter that servers can load if the base is known, otherwise a plain PEFT folder."""
    from llm_forget.adapters.card import vllm_rank
    from llm_forget.adapters.export import export_adapter, save_without_base
    from llm_forget.adapters.lora import BaseRecord
    from llm_forget.utils.digests import weights_digest

    wanted = adapter.rank if rank is None else rank
    if base is not None or (adapter.base.name and adapter.base.digest):
        record = None if base is None else BaseRecord(adapter.base.name or str(base), digest=weights_digest(base))
        done = export_adapter(
            adapter,
            to,
            max_rank=wanted,
            base=record,
            base_folder=base,
            allow_lossy=True,
            method=method,
            results=results,
            overwrite=overwrite,
        )
    else:
        done = save_without_base(adapter, to, max_rank=wanted, method=method, results=results, overwrite=overwrite)
        echo("note: no digest of the base is recorded, so any base with these shapes passes; give --base to record it")
    echo(f"{done.folder}: rank {done.rank}, residual {done.residual:.2e}, with rounding {done.rounding:.2e}")
    if done.rank > 16:
        served = vllm_rank(done.rank)
        start = f"start vLLM with --max-lora-rank {served}" if served else "vLLM does not accept it"
        echo(f"note: rank {done.rank} is above vLLM's default of 16: {start}, or truncate with --rank 16")
