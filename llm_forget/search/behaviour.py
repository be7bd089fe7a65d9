"""Measure adapters on a base: mean answer probabilities for each adapter alone and for their sum."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llm_forget.adapters.arithmetic import scale
from llm_forget.adapters.base_layers import base_layers, check_fit
from llm_forget.adapters.lora import Adapter
from llm_forget.adapters.merge import checked_digest
from llm_forget.config import ModelConfig, UnlearnData
from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import DataSource
from llm_forget.errors import AdapterError
from llm_forget.model.adapted import attach_adapter
from llm_forget.model.limits import padding_id
from llm_forget.model.load import load_model, load_tokenizer, locate_model
from llm_forget.model.measure import SampleMeter
from llm_forget.stop import Measurement
from llm_forget.train.prepare import UnlearnSets, prepare
from llm_forget.utils.terminal import echo


@dataclass(frozen=True)
class Probe:
    """Settings for measuring adapters.

    Attributes:
        model: the base.
        encoding: how rows are encoded, as in the recipe of the run that trained the adapter.
        rows: the number of rows to measure in each set.
        seed: the seed for choosing them.
    """

    model: ModelConfig
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    rows: int = 32
    seed: int = 0

    def read(self, data: UnlearnData) -> UnlearnSets:
        """Read, check and encode the sets as a run does.

        Raises:
            DataError: as ``prepare``.
        """
        sets = prepare(data, self.encoding, load_tokenizer(self.model), rows=self.rows, seed=self.seed)
        for warning in sets.warnings:
            echo(f"note {warning}", file=sys.stderr)
        return sets


class AdaptedModel:
    """A base with several adapters loaded, one of which is active at a time with adjustable strengths.

    Args:
        model: the base, and how to load it.
        adapters: plain LoRA for that base.

    Raises:
        AdapterError: the base is not a folder, or an adapter was made for another base.
    """

    def __init__(self, model: ModelConfig, adapters: Sequence[Adapter]) -> None:
        folder = Path(locate_model(model.name))
        if not folder.is_dir():
            raise AdapterError(f"{model.name} is not a folder; download the base and give its folder.")
        layers = base_layers(folder)
        for adapter in adapters:
            checked_digest(adapter, folder)
            check_fit(adapter, layers)
        self._adapters = [scale(adapter, 1.0) for adapter in adapters]
        base, tokenizer = load_model(replace(model, name=str(folder)))
        self.pad_token_id = padding_id(tokenizer, base)
        self.model = _with_adapters(base, self._adapters)

    def activate(self, index: int, strengths: Mapping[str, float] | None = None) -> None:
        """Activate one adapter, with a strength per module (1 if none is given)."""
        self.model.set_adapter(str(index))
        with torch.no_grad():
            for module, factors in self._adapters[index].modules.items():
                weight = self.model.get_parameter(f"base_model.model.{module}.lora_B.{index}.weight")
                weight.copy_(factors.B * (strengths or {}).get(module, 1.0))


def _with_adapters(base: Any, adapters: Sequence[Adapter]) -> Any:
    """A PeftModel with all adapters, named by their index."""
    model = base
    for index, adapter in enumerate(adapters):
        model = attach_adapter(model, adapter, str(index))
    return model.eval()


@dataclass(frozen=True)
class Behaviour:
    """Mean answer probabilities of the base, each adapter alone, and their sum.

    Attributes:
        base: one measurement per forget set, each with the retain rows.
        alone: the same for each adapter.
        together: the same for the sum of the adapters.
    """

    base: tuple[Measurement, ...]
    alone: tuple[tuple[Measurement, ...], ...]
    together: tuple[Measurement, ...]

    @property
    def remembered(self) -> float:
        """Forget probability under the sum minus that under the set's own adapter, the maximum over the sets.

        Negative if the sum forgets every set better. With one set for all adapters, the adapter that gives it the lowest
        probability counts as its own.
        """
        own = [min(row[i].forget for row in self._owners(i)) for i in range(len(self.together))]
        return max(now.forget - alone for now, alone in zip(self.together, own, strict=True))

    @property
    def retain_lost(self) -> tuple[float, float] | None:
        """Retain probability lost by the sum, and the sum of the losses of the adapters alone; None without retain rows."""
        before, after = self.base[0].retain, self.together[0].retain
        alone = [row[0].retain for row in self.alone]
        if before is None or after is None:
            return None
        return before - after, sum(before - kept for kept in alone if kept is not None)

    def _owners(self, index: int) -> Sequence[tuple[Measurement, ...]]:
        return self.alone if len(self.together) == 1 else [self.alone[index]]


def compare_behaviour(
    probe: Probe,
    adapters: Sequence[Adapter],
    together: Adapter,
    forget: Sequence[DataSource],
    retain: DataSource | None,
) -> Behaviour:
    """Measure the base, each adapter and their sum on each forget set and on the retain rows.

    Args:
        probe: the base, and how to measure.
        adapters: the summands.
        together: their sum.
        forget: one set per adapter, in the same order, or one for all.
        retain: the retain rows, or None.

    Raises:
        AdapterError: the number of forget sets does not fit, or an adapter was made for another base.
        DataError: a set cannot be used.
    """
    if len(forget) not in (1, len(adapters)):
        raise AdapterError(
            f"{len(forget)} forget sets for {len(adapters)} adapters; give one per adapter in the same order, or one for all."
        )
    sets = [probe.read(UnlearnData(forget=source, retain=retain)) for source in forget]
    adapted = AdaptedModel(probe.model, [*adapters, together])
    meters = [SampleMeter(s.forget[: probe.rows], s.validation, adapted.pad_token_id) for s in sets]

    def measure() -> tuple[Measurement, ...]:
        return tuple(meter(adapted.model, 0) for meter in meters)

    with adapted.model.disable_adapter():
        base = measure()
    rows = []
    for index in range(len(adapters) + 1):
        adapted.activate(index)
        rows.append(measure())
    return Behaviour(base, tuple(rows[:-1]), rows[-1])
