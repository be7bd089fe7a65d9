"""Sanitise an adapter on its base: measure inputs, remove the effect on rows to keep, restore the forgetting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llm_forget.adapters.arithmetic import norm
from llm_forget.adapters.lora import Adapter
from llm_forget.adapters.sanitise import filtered, leading_directions, without_directions
from llm_forget.data.encode import Encoded, encode_all
from llm_forget.data.examples import DataSource, Example, read_examples
from llm_forget.errors import AdapterError
from llm_forget.methods.adapter_subtraction import search_strength
from llm_forget.model.load import load_tokenizer
from llm_forget.model.measure import answer_logps
from llm_forget.model.moments import input_moments
from llm_forget.search.behaviour import AdaptedModel, Probe
from llm_forget.stop import Measurement
from llm_forget.train.virtual import virtual_rows
from llm_forget.utils.terminal import clean

Say = Callable[[str], None]
_TRIES = 5  # bisections between 0 and the first power of 2 that is strong enough


@dataclass(frozen=True)
class Rows:
    """The rows for sanitising.

    Attributes:
        keep: rows to keep, or None.
        forget: the forget rows. Asked about other names, they are rows to keep as well, and they show whether the adapter still
            forgets. None for neither.
        virtual: largest number of such questions; 0 for none.
        most: largest number of rows to keep of which inputs are measured.
    """

    keep: DataSource | None
    forget: DataSource | None
    virtual: int = 128
    most: int = 256


@dataclass(frozen=True)
class Effect:
    """Mean answer probabilities with an adapter; None where there are no such rows.

    Attributes:
        forget: of the forget rows.
        keep: of the rows to keep.
        virtual: of the base's own answers to forget questions about other names.
    """

    forget: float | None
    keep: float | None
    virtual: float | None

    def kept(self, base: Effect) -> float:
        """The smallest share of the base's probabilities that is kept."""
        pairs = ((self.keep, base.keep), (self.virtual, base.virtual))
        return min(now / before for now, before in pairs if now is not None and before)

    def __str__(self) -> str:
        names = (("forget", self.forget), ("retain", self.keep), ("virtual neighbours", self.virtual))
        return ", ".join(f"{name} {value:.3f}" for name, value in names if value is not None)


@dataclass(frozen=True)
class Sanitised:
    """A sanitised adapter and its effect.

    Attributes:
        adapter: the adapter; rank, scaling and config are as before.
        strength: the factor of B, 1 without a search.
        left: ‖ΔW'‖ / ‖ΔW‖ before the strength.
        base: the effect of the base alone.
        before: the effect of the adapter as it was.
        after: the effect of the result.
    """

    adapter: Adapter
    strength: float
    left: float
    base: Effect
    before: Effect
    after: Effect


def sanitise_adapter(
    adapter: Adapter,
    probe: Probe,
    rows: Rows,
    *,
    energy: float | None = None,
    weight: float = 30.0,
    rescale: bool = True,
    target: float | None = None,
    floor: float = 0.0,
    maximum: float = 64.0,
    say: Say = lambda _: None,
) -> Sanitised:
    """Remove from an adapter what it does to rows to keep, and scale the rest until it forgets as before.

    With forget rows, the inputs of both kinds of rows decide (``adapters.sanitise.filtered``). Without them, or with ``energy``,
    the leading directions of the inputs of rows to keep are removed (``without_directions``).

    Args:
        adapter: plain LoRA for the base.
        probe: the base, and how to measure.
        rows: the rows.
        energy: share of the inputs' energy that the adapter may no longer see, above 0 and below 1; None for the filter if there
            are forget rows, otherwise 0.8.
        weight: weight of rows to keep against forget rows in the filter.
        rescale: search the strength; needs forget rows.
        target: forget probability to reach; None for that of the adapter as it was.
        floor: share of the base's probability on rows to keep below which the search does not go.
        maximum: largest strength.
        say: called with progress.

    Raises:
        AdapterError: there are no rows to keep, nothing is left of the adapter, or no strength keeps the floor.
        DataError: a set cannot be used.
    """
    _check(rows, energy, weight, rescale, maximum)
    adapted = AdaptedModel(probe.model, [adapter])
    model, pad = adapted.model, adapted.pad_token_id
    tokenizer = load_tokenizer(probe.model)
    keep, forget = _read(rows.keep), _read(rows.forget)
    sets = {"keep": _encoded(tokenizer, keep, probe, rows.most), "virtual": []}
    with model.disable_adapter():
        if forget and rows.virtual:
            sets["virtual"] = virtual_rows(
                forget,
                keep,
                model,
                tokenizer,
                probe.encoding,
                seed=probe.seed,
                most=rows.virtual,
                known_names=0.5,
                max_new_tokens=48,
                say=say,
            )
        held = [one for one in sets.values() if one]
        if not held:
            raise AdapterError(
                "there are no rows to keep; give --retain, or forget rows with names and --virtual above 0."
            )
        gone = _encoded(tokenizer, forget, probe, rows.most)
        if gone and energy is None:
            new = _filtered(adapter, model, held, gone, pad, weight)
        else:
            new = _projected(adapter, model, held, pad, 0.8 if energy is None else energy)
    left = norm(new) / norm(adapter)
    if not left > 1e-3:
        raise AdapterError(
            "nothing is left of the adapter, which sees only inputs of rows to keep; lower --energy or --weight."
        )
    measured = {
        "forget": gone[: probe.rows],
        **{name: found[: probe.rows] for name, found in sets.items()},
    }

    def effect() -> Effect:
        found = {
            name: float(answer_logps(model, some, pad)[1].mean()) if some else None for name, some in measured.items()
        }
        return Effect(**found)

    with model.disable_adapter():
        base = effect()
    before = effect()
    say(f"adapter as it was: {before}")
    _put(model, new)

    def at(strength: float) -> Effect:
        adapted.activate(0, dict.fromkeys(adapter.modules, strength))
        now = effect()
        say(f"sanitised, strength {strength:.3g}: {now}")
        return now

    strength, after = 1.0, at(1.0)
    if rescale and before.forget is not None:
        wanted = before.forget if target is None else target

        def measure(strength: float) -> Measurement:
            nonlocal after
            after = at(strength)
            return Measurement(0, after.forget or 0.0, after.kept(base))

        top = 1.0
        while top < maximum and (after.forget or 0.0) > wanted and after.kept(base) >= floor:
            top = min(2 * top, maximum)
            after = at(top)
        strength = search_strength(measure, target=wanted, floor=floor, maximum=top, tries=_TRIES)
        if not strength:
            raise AdapterError(
                f"no strength down to {top / 2**_TRIES:.3g} keeps {floor:.0%} of the base's probability on rows to keep; lower "
                "--floor, or raise --weight."
            )
        after = at(strength)
    scaled = {module: replace(one, B=(one.B.float() * strength).to(one.B.dtype)) for module, one in new.modules.items()}
    return Sanitised(replace(adapter, modules=scaled), strength, left, base, before, after)


def _check(rows: Rows, energy: float | None, weight: float, rescale: bool, maximum: float) -> None:
    if energy is not None and not 0 < energy < 1:
        raise AdapterError(f"--energy is {energy}; give a share above 0 and below 1, such as 0.8.")
    if not 0 < weight < math.inf or not 0 < maximum < math.inf:
        raise AdapterError(f"--weight is {weight} and --maximum {maximum}; give numbers above 0.")
    if rows.keep is None and rows.forget is None:
        raise AdapterError("no rows given; give --retain, --forget or both.")
    if rescale and rows.forget is None:
        raise AdapterError("the search for a strength needs --forget; give it, or --no-rescale.")


def _read(source: DataSource | None) -> list[Example]:
    return [] if source is None else read_examples(source)


def _encoded(tokenizer: Any, examples: Sequence[Example], probe: Probe, most: int) -> list[Encoded]:
    if not examples:
        return []
    step = max(len(examples) // most, 1)
    return encode_all(tokenizer, list(examples)[::step][:most], probe.encoding, role="keep")[0]


def _projected(adapter: Adapter, model: Any, keep: Sequence[Sequence[Encoded]], pad: int, energy: float) -> Adapter:
    """The adapter without the leading directions of the inputs; each set has the same weight."""
    modules = dict(adapter.modules)
    for group, moments in input_moments(model.get_base_model(), list(modules), keep, pad):
        directions = leading_directions(_mean(moments), energy)
        modules |= {name: without_directions(modules[name], directions) for name in group}
    return replace(adapter, modules=modules)


def _filtered(
    adapter: Adapter, model: Any, keep: Sequence[Sequence[Encoded]], gone: Sequence[Encoded], pad: int, weight: float
) -> Adapter:
    """The adapter after ``filtered``; each set of rows to keep has the same weight."""
    modules = dict(adapter.modules)
    for group, (forget, *others) in input_moments(model.get_base_model(), list(modules), [gone, *keep], pad):
        modules |= {name: filtered(modules[name], forget.cpu(), _mean(others), weight) for name in group}
    return replace(adapter, modules=modules)


def _mean(moments: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.cpu() for one in moments]).mean(0)


@torch.no_grad()
def _put(model: Any, adapter: Adapter) -> None:
    for module, factors in adapter.modules.items():
        model.get_parameter(f"base_model.model.{module}.lora_A.0.weight").copy_(factors.A)


def summary(found: Sanitised) -> Mapping[str, object]:
    """What was done, for the card and the terminal."""
    return {
        "norm of the change left": f"{found.left:.3f}",
        "strength": f"{found.strength:.4g}",
        "base": clean(str(found.base)),
        "adapter as it was": clean(str(found.before)),
        "sanitised": clean(str(found.after)),
    }
