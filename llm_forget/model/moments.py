"""Second moments of the inputs of linear layers, accumulated over the tokens of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.batching import evaluating, length_batches
from llm_forget.model.weights import autocast_like

_BATCH_TOKENS = 2048
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
    model: nn.Module, leaders: Sequence[str], widths: dict[str, int], rows: Sequence[Encoded], pad_token_id: int
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    sums = {name: torch.zeros(widths[name], widths[name], device=device) for name in leaders}
    counts = dict.fromkeys(leaders, 0)
    lengths = [len(row.input_ids) for row in rows]
    for indices in length_batches(lengths, _BATCH_TOKENS):
        batch = {k: v.to(device) for k, v in collate([rows[index] for index in indices], pad_token_id).items()}
        inside = batch["attention_mask"].bool()

        def add(name: str, value: Tensor, inside: Tensor = inside) -> None:
            # experts see (tokens, d) without padding's place, so all of it counts there
            flat = value[inside] if value.shape[:-1] == inside.shape else value.flatten(0, -2)
            flat = torch.nn.functional.normalize(flat.float(), dim=-1)
            sums[name].addmm_(flat.T, flat)
            counts[name] += len(flat)

        with ExitStack() as stack:
            for name in leaders:
                stack.enter_context(_watch(model.get_submodule(name), lambda value, name=name: add(name, value)))
            _run(model, batch)
    return {name: value / max(counts[name], 1) for name, value in sums.items()}


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
