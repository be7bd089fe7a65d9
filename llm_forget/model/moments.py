"""Second moments of the inputs of linear layers, accumulated over the tokens of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.batching import evaluating, padded_batches
from llm_forget.model.weights import autocast_like, exact

_MEMORY = 2e9  # bytes of moments that are held at once; more layers take more passes over the rows


@torch.no_grad()
def input_moments(
    model: nn.Module, modules: Sequence[str], sets: Sequence[Sequence[Encoded]], pad_token_id: int
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """The second moment ``Σ x xᵀ / n`` of each layer's inputs over the tokens of each set, in fp32.

    Layers that read the same tensor, as query, key and value do, share one. The input of each token is divided by its length
    first: a few tokens, such as the first of a row, have inputs a hundred times as long as others and would be all of the
    energy. Padding does not count.

    Memory is bounded: groups of layers are measured in several passes if their (d, d) moments do not fit into 2 GB.

    Args:
        model: the model, with adapters disabled or absent.
        modules: names of linear layers.
        sets: sets of rows; one moment per set.
        pad_token_id: the padding token.

    Yields:
        The names of layers with the same input, and the (d, d) moments of the sets.
    """
    with evaluating(model):
        groups = _shared_inputs(model, modules, sets[0][0])
        widths = {group[0]: int(_input_width(model, group[0])) for group in groups}
        while groups:
            taken: list[list[str]] = []
            size = 0.0
            while groups and (not taken or size + 4.0 * len(sets) * widths[groups[0][0]] ** 2 <= _MEMORY):
                group = groups.pop(0)
                size += 4.0 * len(sets) * widths[group[0]] ** 2
                taken.append(group)
            leaders = [group[0] for group in taken]
            moments = [_moments(model, leaders, widths, rows, pad_token_id) for rows in sets]
            for group in taken:
                yield group, [one.pop(group[0]) for one in moments]


def _moments(
    model: nn.Module, leaders: Sequence[str], widths: Mapping[str, int], rows: Sequence[Encoded], pad_token_id: int
) -> dict[str, Tensor]:
    found = InputMoments({name: model.get_submodule(name) for name in leaders}, unit=True)
    device = next(model.parameters()).device
    for batch in padded_batches(rows, pad_token_id, device):
        with found.reading(batch["attention_mask"]):
            _run(model, batch)
    means = found.means
    for name in leaders:  # an expert that no token reached
        means.setdefault(name, torch.zeros(widths[name], widths[name], device=device))
    return means


class InputMoments:
    """Mean x xᵀ over the tokens of rows, of the inputs x of each layer. Layers that read the same tensor share one matrix.

    Args:
        layers: the layers by name.
        unit: divide each token's input by its length first.

    Attributes:
        sums: the first layer that reads some inputs → (d, d) the sum of x xᵀ so far, in fp32.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, unit: bool = False) -> None:
        self._layers, self._unit = dict(layers), unit
        self.sums: dict[str, Tensor] = {}
        self._owner: dict[str, str] = {}  # layer → the layer that first read the same inputs
        self._tokens: dict[str, int] = {}

    @contextmanager
    def reading(self, attention_mask: Tensor) -> Iterator[None]:
        """Context of one forward pass over a padded batch with this mask (B, T)."""
        real = attention_mask.bool()
        last: list[tuple[Tensor, str]] = []

        def add(name: str, given: Tensor) -> None:
            owner, sums = self._owner, self.sums
            if name not in owner:
                owner[name] = owner[last[0][1]] if last and last[0][0] is given else name
            last[:] = [(given, name)]
            if owner[name] == name:
                # experts see (tokens, d) without padding's place, and a batch packed into one line has no padding
                inputs = given.detach()[real] if given.shape[:-1] == real.shape else given.detach().flatten(0, -2)
                inputs = inputs.float()
                if self._unit:
                    inputs = torch.nn.functional.normalize(inputs, dim=-1)
                # Inputs in bf16 have 8 bits, so that their unit vectors may be rounded to bf16 as well. Sums are in fp32.
                with exact(given):
                    product = inputs.T @ inputs
                sums[name] = sums[name].add_(product) if name in sums else product
                self._tokens[name] = self._tokens.get(name, 0) + len(inputs)

        def watcher(name: str) -> Any:
            return lambda module, given: add(name, given[0])

        handles = [layer.register_forward_pre_hook(watcher(name)) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def means(self) -> dict[str, Tensor]:
        """Layer → (d, d) in fp32."""
        means = {name: total / max(self._tokens[name], 1) for name, total in self.sums.items()}
        return {name: means[first] for name, first in self._owner.items()}


def _shared_inputs(model: nn.Module, modules: Sequence[str], row: Encoded) -> list[list[str]]:
    """The layers in groups that read the same tensor, in the order of ``modules``."""
    seen: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    batch = {k: v.to(device) for k, v in collate([row], 0).items()}
    with ExitStack() as stack:
        for name in modules:
            # the tensors are kept until the end, so that no two have one address
            stack.enter_context(
                _watch(model.get_submodule(name), lambda value, name=name: seen.setdefault(name, value))
            )
        _run(model, batch)
    groups: dict[Any, list[str]] = {}
    for name in modules:
        value = seen.get(name)
        key = name if value is None else (value.data_ptr(), tuple(value.shape))
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _run(model: Any, batch: dict[str, Tensor]) -> None:
    """A forward pass without the head."""
    inner = getattr(model, "base_model", model)
    with autocast_like(model):
        inner(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)


def _watch(module: nn.Module, see: Any) -> Any:
    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        see(inputs[0])

    handle = module.register_forward_pre_hook(before)
    stack = ExitStack()
    stack.callback(handle.remove)
    return stack


def _input_width(model: nn.Module, name: str) -> int:
    layer: Any = model.get_submodule(name)
    width = getattr(layer, "in_features", None)
    return int(layer.weight.shape[0] if width is None else width)  # a Conv1D has (in, out)
