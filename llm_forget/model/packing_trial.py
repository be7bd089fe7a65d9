"""Decide whether a model can be packed: from its layers, and from a trial on a few short rows.

A layer that carries a state along the sequence (a recurrence, a convolution) would carry it from one row into the next. In half
precision this can be as small as rounding, so such layers are refused by their kind, and the trial does not rely on a tolerance
alone: it also changes one row, and every other row of the sequence must stay exactly as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llm_forget.model.adapted import without_zero_adapter
from llm_forget.model.batching import evaluating
from llm_forget.model.head import below_wrapper
from llm_forget.model.layout import model_inputs, pack
from llm_forget.model.structure import carries_state, is_sparse_mixture, line_limit, vocabulary_of
from llm_forget.model.weights import autocast_like

# Distances are the largest difference of logits at any position, in standard deviations of the logits. Packed rows may be at
# most this many times as far from single rows as padded ones are: all three are computed with different shapes.
_TIMES = 3.0
# The least that is allowed, because a padded row may by chance equal the single row to the bit.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
_ROUNDING_HALF = 0.03

TRIAL = "trial"  # the key of a layout that is tried


def why_not(model: nn.Module) -> str | None:
    """Why the model cannot be packed; None if it can. Packed attention must be active.

    Args:
        model: wrapped or not, on its device.
    """
    layer = carries_state(below_wrapper(model))
    if layer is not None:
        return f"{layer} carries a state along the sequence"
    try:
        with evaluating(model), without_zero_adapter(model), torch.no_grad(), autocast_like(model):
            return _try_rows(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's code may raise any error for unknown arguments
        said = str(error).partition("\n")[0][:100]
        return f"the model does not support it ({type(error).__name__}: {said})"


def _try_rows(model: nn.Module) -> str | None:
    """Compare packed, padded and single rows; two of the three share a prefix."""
    vocabulary = vocabulary_of(below_wrapper(model).config)
    first = [(7 * place) % (vocabulary - 2) for place in range(24)]
    last = [vocabulary - 1, *first[5:11]]  # the largest first token, so the last row of the sequence
    rows = [first, [*first[:12], *((11 * place + 1) % (vocabulary - 2) for place in range(9))], last]
    # the same lengths and the same shared prefix, so the same shapes, but other tokens before the last row
    others = [[one + 1 for one in row] for row in rows[:2]]
    device = next(model.parameters()).device
    counting = _Counting(model, tokens=len(first) + 9 + len(last))
    with counting:
        packed = _packed(model, rows, device)
    if counting.found and line_limit(below_wrapper(model).config) is None:
        return "attention counts positions along the sequence"
    padded = _padded(model, rows, device)
    alone = [_padded(model, [row], device)[0] for row in rows]
    moved, allowed = _distance(packed, alone), _TIMES * _distance(padded, alone)
    dtype = next(model.parameters()).dtype
    if not moved <= max(allowed, _ROUNDING.get(dtype, _ROUNDING_HALF)):
        return f"the model gives different logits for packed rows (difference {moved:.2g})"
    seen = _distance(_packed(model, [*others, last], device)[2:], packed[2:])
    # the experts of a mixture get other numbers of tokens, which changes the shapes of their products
    noise = _distance(_padded(model, [*others, last], device)[2:], padded[2:])
    if is_sparse_mixture(below_wrapper(model).config):
        noise = max(noise, allowed / _TIMES, _ROUNDING.get(dtype, _ROUNDING_HALF))
    if not seen <= _TIMES * noise:
        return f"the model gives different logits for a row if another row changes (difference {seen:.2g})"
    return None


def _packed(model: Any, rows: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """The logits (T, V) of each row, computed in one sequence."""
    ids, mask = _batch(rows, device)
    line = pack(ids, mask, worth=1.0)
    if line is None:
        raise ValueError("the trial rows cannot be packed")
    line.layout[TRIAL] = torch.ones(())
    logits = model(**model_inputs(line), use_cache=False).logits[0]
    return [logits[line.place[place, : len(row)]].float() for place, row in enumerate(rows)]


def _padded(model: Any, rows: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """The logits (T, V) of each row, computed in a padded batch."""
    ids, mask = _batch(rows, device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [logits[place, : len(row)].float() for place, row in enumerate(rows)]


def _batch(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def _distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest difference of two lists of logits, in standard deviations of the right ones."""
    return max(
        float(((one - two).abs().amax(-1) / two.std(-1).clamp(min=1e-6)).max())
        for one, two in zip(left, right, strict=True)
    )


class _Counting(TorchFunctionMode):
    """Notices if attention numbers the tokens of the sequence itself, instead of reading ``position_ids``."""

    def __init__(self, model: nn.Module, tokens: int) -> None:
        super().__init__()
        self.found = False
        self._model, self._tokens, self._depth = model, tokens, 0
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for module in self._model.modules():
            if "attention" in type(module).__name__.lower():
                self._handles.append(module.register_forward_pre_hook(partial(self._step, 1)))
                self._handles.append(module.register_forward_hook(partial(self._step, -1)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _step(self, change: int, *_: Any) -> None:
        self._depth += change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self._depth > 0 and func is torch.arange and found.numel() == self._tokens:
            self.found = True
        return found
