"""The retain rows that a run trains on if it takes a few of many: those worded most like the forget rows."""

from __future__ import annotations

import math

from llm_forget.data.schedule import evenly
from llm_forget.data.similar import mined_neighbours
from llm_forget.train.prepare import UnlearnSets


def coreset(sets: UnlearnSets, most: int | None) -> list[int]:
    """Indices into ``sets.retain``: at most ``most`` rows, in their order there.

    Rows worded like the forget rows are harmed most (arXiv:2502.11441). They come first, the best of each forget row before
    any second best; rows without a common word fill the rest, evenly spaced. The rows recur more often than all would, and
    with ``adapter.top_share`` a row that recurs costs no lower blocks.

    Args:
        sets: the rows.
        most: number of rows; None for all.
    """
    every = list(range(len(sets.retain)))
    if most is None or most >= len(every):
        return every
    examples = list({example.id: example for example in sets.forget_examples}.values())
    each = math.ceil(most / max(len(examples), 1)) + 1
    ranked = [sets.retain_examples[index].id for index in mined_neighbours(examples, sets.retain_examples, each)]
    place = {name: number for number, name in reversed(list(enumerate(ranked)))}
    near = sorted(
        (index for index in every if sets.retain[index].id in place), key=lambda one: place[sets.retain[one].id]
    )
    chosen = set(near[:most])
    others = [index for index in every if index not in chosen]
    return sorted(chosen | {others[place] for place in evenly(len(others), most - len(chosen))})
