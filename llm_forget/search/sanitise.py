"""Sanitise an adapter on its base: measure inputs, remove the effect on rows to keep, restore the forgetting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from llm_forget.adapters.arithmetic import norm
from llm_forget.adapters.lora import Adapter
from llm_forget.adapters.sanitise import filtered, leading_directions, without_directions
from llm_forget.errors import AdapterError
from llm_forget.search.sanitise_base import Effect, Rows, SanitiseBase
from llm_forget.utils.terminal import clean

_FIRST = 4.0  # the first strength that is tried: a filtered adapter is too weak at 1
_GROWTH = 4.0  # the factor while it is not enough
_TRIES = 5  # measurements between the last two
_NEAR = 0.9  # of the wanted forget probability, from which a strength is not made smaller
_AIM = 0.95  # of it, what an interpolation aims at


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
    base: SanitiseBase,
    *,
    energy: float | None = None,
    weight: float = 30.0,
    rescale: bool = True,
    target: float | None = None,
    floor: float = 0.0,
    maximum: float = 64.0,
) -> Sanitised:
    """Remove from an adapter what it does to rows to keep, and scale the rest until it forgets as before.

    With forget rows, the inputs of both kinds of rows decide (``adapters.sanitise.filtered``). Without them, or with ``energy``,
    the leading directions of the inputs of rows to keep are removed (``without_directions``).

    Args:
        adapter: plain LoRA for the base.
        base: the base, the rows, and how to measure.
        energy: share of the inputs' energy that the adapter may no longer see, above 0 and below 1; None for the filter if there
            are forget rows, otherwise 0.8.
        weight: weight of rows to keep against forget rows in the filter.
        rescale: search the strength; needs forget rows.
        target: forget probability to reach; None for that of the adapter as it was.
        floor: share of the base's probability on rows to keep below which the search does not go.
        maximum: largest strength.

    Raises:
        AdapterError: the adapter is zero, there are no rows to keep, nothing is left of it, or no strength keeps the floor.
        DataError: a set cannot be used.
    """
    _check(base.rows, energy, weight, rescale, maximum)
    base.check(adapter)
    before_size = norm(adapter)
    if not before_size > 0:
        raise AdapterError(
            "the adapter changes nothing: its factors are zero, so there is nothing to sanitise. The run that wrote it kept the "
            "state before its first step; its result.json says why."
        )
    if base.sets["forget"] and energy is None:
        new = _filtered(adapter, base, weight)
    else:
        new = _projected(adapter, base, 0.8 if energy is None else energy)
    left = norm(new) / before_size
    if not left > 1e-3:
        raise AdapterError(
            "nothing is left of the adapter, which sees only inputs of rows to keep; lower --energy or --weight."
        )
    before = base.effect_of(adapter)
    base.say(f"adapter as it was: {before}")

    @cache
    def forget(strength: float) -> float:
        now = base.probability("forget", new, strength) if strength else base.effect.forget
        base.say(f"sanitised, strength {strength:.3g}: forget {now or 0.0:.3f}")
        return now or 0.0

    @cache
    def after(strength: float) -> Effect:
        known = forget(strength) if base.sets["forget"] else None
        now = base.effect_of(new, strength, forget=known)
        base.say(f"sanitised, strength {strength:.3g}: {now}")
        return now

    strength = 1.0
    if rescale and before.forget is not None:
        strength = least_strength(
            forget,
            lambda strength: after(strength).kept(base.effect),
            wanted=before.forget if target is None else target,
            floor=floor,
            maximum=maximum,
        )
        if not strength:
            raise AdapterError(
                f"no strength that was tried keeps {floor:.0%} of the base's probability on rows to keep; lower --floor, or "
                "raise --weight."
            )
    scaled = {module: replace(one, B=(one.B.float() * strength).to(one.B.dtype)) for module, one in new.modules.items()}
    return Sanitised(replace(adapter, modules=scaled), strength, left, base.effect, before, after(strength))


def least_strength(
    forget: Callable[[float], float],
    kept: Callable[[float], float],
    *,
    wanted: float,
    floor: float,
    maximum: float,
    tries: int = _TRIES,
) -> float:
    """The smallest strength that forgets enough, or else the largest that keeps the floor.

    Raises the strength (4, 16, 64) until it is too large, then narrows the interval below, at its middle or where the logarithm
    of the forget probability is expected to be that of ``wanted``. It ends at most 10 % below ``wanted``, or after ``tries``.

    Args:
        forget: strength → forget probability, which falls. Called at 0 only if 4 is enough.
        kept: strength → share of the base's probability on rows to keep. Called only where ``forget`` leaves the answer open.
        wanted: forget probability to reach.
        floor: smallest share; 0 for none.
        maximum: largest strength.
        tries: measurements between the last two of these.

    Returns:
        A strength in (0, maximum]; 0 if every strength that was tried breaks the floor or has no finite probability.
    """

    def enough(strength: float) -> bool:
        reached = not forget(strength) > wanted  # also if it is NaN, which a smaller strength may mend
        return reached or (floor > 0 and not kept(strength) >= floor)

    low, high = 0.0, min(_FIRST, maximum)
    while not enough(high):
        if high >= maximum:
            return maximum
        low, high = high, min(_GROWTH * high, maximum)
    for attempt in range(tries):
        near = _NEAR * wanted <= forget(high) <= wanted
        if near and (floor <= 0 or kept(high) >= floor):
            break
        middle = (low + high) / 2
        if attempt % 2 == 0 and not near:
            middle = _between(low, high, forget(low), forget(high), wanted)
        low, high = (low, middle) if enough(middle) else (middle, high)
    sound = math.isfinite(forget(high)) and (floor <= 0 or kept(high) >= floor)
    return high if sound else low


def _between(low: float, high: float, above: float, below: float, wanted: float) -> float:
    """Where a line through the logarithms of the forget probabilities at both ends meets the wanted one, not near an end."""
    if not 0 < below < wanted < above:
        return (low + high) / 2
    share = math.log(above / (_AIM * wanted)) / math.log(above / below)
    return low + min(max(share, 0.05), 0.95) * (high - low)


def _check(rows: Rows, energy: float | None, weight: float, rescale: bool, maximum: float) -> None:
    if energy is not None and not 0 < energy < 1:
        raise AdapterError(f"--energy is {energy}; give a share above 0 and below 1, such as 0.8.")
    if not 0 < weight < math.inf or not 0 < maximum < math.inf:
        raise AdapterError(f"--weight is {weight} and --maximum {maximum}; give numbers above 0.")
    if rows.keep is None and rows.forget is None:
        raise AdapterError("no rows given; give --retain, --forget or both.")
    if rescale and rows.forget is None:
        raise AdapterError("the search for a strength needs --forget; give it, or --no-rescale.")


def _projected(adapter: Adapter, base: SanitiseBase, energy: float) -> Adapter:
    """The adapter without the leading directions of the inputs; each set has the same weight."""
    modules = dict(adapter.modules)
    for inputs in base.inputs(list(modules)):
        directions = leading_directions(inputs.keep, energy)
        modules |= {name: without_directions(modules[name], directions) for name in inputs.modules}
    return replace(adapter, modules=modules)


def _filtered(adapter: Adapter, base: SanitiseBase, weight: float) -> Adapter:
    """The adapter after ``filtered``; each set of rows to keep has the same weight."""
    modules = dict(adapter.modules)
    for inputs in base.inputs(list(modules)):
        if inputs.forget is not None:
            group = [modules[name] for name in inputs.modules]
            modules |= zip(inputs.modules, filtered(group, inputs.forget, inputs.keep, weight), strict=True)
    return replace(adapter, modules=modules)


def summary(found: Sanitised) -> Mapping[str, object]:
    """What was done, for the card and the terminal."""
    return {
        "norm of the change left": f"{found.left:.3f}",
        "strength": f"{found.strength:.4g}",
        "base": clean(str(found.base)),
        "adapter as it was": clean(str(found.before)),
        "sanitised": clean(str(found.after)),
    }
