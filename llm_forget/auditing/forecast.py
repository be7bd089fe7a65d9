"""Forecast from files alone what rounding leaves of an update: its size against the quantiser's bins, layer by layer.

Rounding to nearest moves a weight by a whole bin or not at all. An update that is small against the bins survives on average,
but as a few large steps in place of many small ones: the share of the rounded change that points along the update falls with
the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from llm_forget.adapters.arithmetic import delta
from llm_forget.adapters.base_layers import FLOATS, BaseLayers, base_layers
from llm_forget.adapters.groups import layer_of
from llm_forget.adapters.lora import load_adapter
from llm_forget.auditing.forms import Quantiser
from llm_forget.auditing.rounding import gguf_rounded, int4_rounded, nf4_rounded
from llm_forget.errors import AdapterError, UserError

_ROWS = 128  # rows of a weight that are looked at, evenly spread
_ROUND: dict[Quantiser, Callable[[Tensor], Tensor]] = {
    "nf4": nf4_rounded,
    "int4_rtn": int4_rounded,
    "gguf_q4": lambda one: gguf_rounded(one, "Q4_0"),
    "gguf_q8": lambda one: gguf_rounded(one, "Q8_0"),
}


@dataclass(frozen=True)
class LayerForecast:
    """One linear layer.

    Attributes:
        name: its name in the model.
        block: the number of its block; −1 if it is in none.
        update: root mean square of the update, in units of the weights.
        bin: mean width of a bin, from the weights that rounding moved: twice their mean square error's root times √3.
        ratio: update / bin.
        kept: cosine between the rounded change Q(W + Δ) − Q(W) and Δ: 1 if rounding changes nothing.
        moved: share of the weights that move by half a bin or more; smaller steps are changes of a block's scale.
    """

    name: str
    block: int
    update: float
    bin: float
    ratio: float
    kept: float
    moved: float


@dataclass(frozen=True)
class Forecast:
    """What rounding leaves of an update.

    Attributes:
        quantiser: the quantiser.
        layers: the layers that the update changes.
        ratio: root mean square of the update over that of the bins, all layers together.
        kept: cosine over all layers together.
        moved: share of the weights that move by half a bin or more.
    """

    quantiser: Quantiser
    layers: tuple[LayerForecast, ...]
    ratio: float
    kept: float
    moved: float

    def by_block(self) -> dict[int, float]:
        """Block → cosine that is left of its update, weighted by the updates' energy."""
        sums: dict[int, list[float]] = {}
        for one in self.layers:
            total = sums.setdefault(one.block, [0.0, 0.0])
            total[0] += one.kept * one.update**2
            total[1] += one.update**2
        return {block: part / whole if whole else 1.0 for block, (part, whole) in sorted(sums.items())}


def forecast(
    base: str | Path, after: str | Path, quantiser: Quantiser = "nf4", *, rows: int | None = _ROWS
) -> Forecast | None:
    """Forecast from the files of a base and of an adapter or a model.

    Args:
        base: folder of the model before unlearning.
        after: folder of the adapter, or of the model after unlearning.
        quantiser: nf4, int4_rtn, gguf_q4 or gguf_q8.
        rows: rows of each weight to look at; None for all.

    Returns:
        The forecast; None if the update changes no layer.

    Raises:
        UserError: the files cannot be read, or do not belong together.
    """
    if quantiser not in _ROUND:
        raise UserError(f"no forecast for {quantiser}; give one of {', '.join(_ROUND)}")
    layers, found = base_layers(base), []
    dots = torch.zeros(3, dtype=torch.float64)  # <c, Δ>, <c, c>, <Δ, Δ>
    widths = moved = count = 0.0
    for name, weight, change in updates(layers, Path(after)):
        if rows is not None and len(weight) > rows:
            chosen = torch.linspace(0, len(weight) - 1, rows).round().long()
            weight, change = weight[chosen], change[chosen]
        if not change.any():
            continue
        before, rounded = _ROUND[quantiser](weight), _ROUND[quantiser](weight + change)
        step = (rounded - before).double()
        own = torch.stack([(step * change).sum(), step.square().sum(), change.double().square().sum()])
        width = (
            float((weight - before).double().square().mean().sqrt()) * 12**0.5
        )  # a uniform error in a bin has width/√12
        hits, update = float((step.abs() > width / 2).double().mean()), float(change.double().square().mean().sqrt())
        found.append(
            LayerForecast(name, _block(name), update, width, update / width if width else 0.0, _cosine(own), hits)
        )
        dots, widths = dots + own, widths + width**2 * change.numel()
        moved, count = moved + hits * change.numel(), count + change.numel()
    if not found:
        return None
    ratio = float((dots[2] / widths).sqrt()) if widths else 0.0
    return Forecast(quantiser, tuple(found), ratio, _cosine(dots), moved / count)


def updates(layers: BaseLayers, after: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, weight (out, in) and update of each layer that can be read."""
    if (after / "adapter_config.json").is_file():
        adapter = load_adapter(after)
        for name in adapter.modules:
            weight = _weight(layers, name)
            if weight is not None:
                yield name, weight, delta(adapter, name).float()
        return
    other = base_layers(after)
    for name, layer in other.layers.items():
        weight, new = _weight(layers, name) if name in layers.layers else None, _weight(other, name)
        if weight is not None and new is not None and weight.shape == new.shape and layer.stored is not None:
            yield name, weight, new - weight


def _weight(layers: BaseLayers, name: str) -> Tensor | None:
    """A weight (out, in) in fp32 from its file; None if it is tied, converted or quantised."""
    layer = layers.layers.get(name)
    if layer is None:
        raise UserError(f"the base {layers.folder} has no layer {name}; give the base that the adapter was trained on")
    if layer.stored is None or layer.dtype not in FLOATS:
        return None
    from llm_forget.utils.digests import stored_tensors

    file = stored_tensors(layers.folder)[layer.stored].file
    with safe_open(file, framework="pt") as opened:
        weight: Tensor = opened.get_tensor(layer.stored).float()
    return weight.T.contiguous() if layer.transposed else weight


def _block(name: str) -> int:
    try:
        return layer_of(name)
    except AdapterError:
        return -1


def _cosine(dots: Tensor) -> float:
    """<c, Δ> / (‖c‖ ‖Δ‖); 0 if rounding leaves nothing."""
    scale = float((dots[1] * dots[2]).sqrt())
    return float(dots[0]) / scale if scale else 0.0
