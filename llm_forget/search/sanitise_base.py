"""A base and the rows for sanitising. What does not depend on the adapter is computed once for all adapters of the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_forget.adapters.base_layers import BaseLayers, base_layers, check_fit
from llm_forget.adapters.lora import Adapter
from llm_forget.adapters.merge import checked_digest
from llm_forget.data.encode import Encoded, encode_all
from llm_forget.data.examples import DataSource, Example, read_examples
from llm_forget.data.schedule import evenly
from llm_forget.errors import AdapterError
from llm_forget.model.adapted import applied
from llm_forget.model.limits import padding_id
from llm_forget.model.load import load_model, locate_model
from llm_forget.model.measure import answer_logps
from llm_forget.model.moments import input_moments
from llm_forget.search.behaviour import Probe
from llm_forget.train.virtual import virtual_rows

Say = Callable[[str], None]
_ASKED = 64  # questions at once; a step costs a CPU about the same for 8 rows as for 16
_HELD = 2e9  # bytes of moments that are kept for the next adapter; those of other layers are measured again


@dataclass(frozen=True)
class Rows:
    """The rows for sanitising.

    Attributes:
        keep: rows to keep, or None.
        forget: the forget rows. Asked about other names, they are rows to keep as well, and they show whether the adapter still
            forgets. None for neither.
        virtual: largest number of such questions; 0 for none.
        most: largest number of rows to keep, and of forget rows, of which inputs are measured.
    """

    keep: DataSource | None
    forget: DataSource | None
    virtual: int = 64
    most: int = 64


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
class Inputs:
    """Second moments of the inputs of layers that read the same tensor.

    Attributes:
        modules: the names of the layers.
        forget: (d, d) of the forget rows, fp32; None without any.
        keep: (d, d) of the rows to keep, the mean over their sets, fp32.
    """

    modules: tuple[str, ...]
    forget: Tensor | None
    keep: Tensor

    @property
    def size(self) -> float:
        """Bytes."""
        return float(self.keep.nbytes * (1 if self.forget is None else 2))


class SanitiseBase:
    """A base with rows. Nothing is loaded or computed before it is needed.

    Args:
        probe: the base, and how to measure.
        rows: the rows.
        say: called with progress.
    """

    def __init__(self, probe: Probe, rows: Rows, say: Say = lambda _: None) -> None:
        self.probe, self.rows, self.say = probe, rows, say
        self._inputs: list[Inputs] = []

    @cached_property
    def layers(self) -> BaseLayers:
        """The linear layers of the base.

        Raises:
            AdapterError: the base is not a folder.
        """
        folder = Path(locate_model(self.probe.model.name))
        if not folder.is_dir():
            raise AdapterError(f"{self.probe.model.name} is not a folder; download the base and give its folder.")
        return base_layers(folder)

    def check(self, adapter: Adapter) -> None:
        """Check that an adapter was made for this base.

        Raises:
            AdapterError: it was not, or the base is not a folder.
        """
        checked_digest(adapter, self.layers.folder)
        check_fit(adapter, self.layers)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, tokenizer = load_model(self.probe.model)
        return model.eval(), tokenizer

    @property
    def model(self) -> Any:
        """The base, without adapters."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._loaded[1]

    @cached_property
    def pad_token_id(self) -> int:
        """The padding token."""
        return padding_id(self.tokenizer, self.model)

    @cached_property
    def sets(self) -> dict[str, list[Encoded]]:
        """The rows of ``Effect``'s sets by name, of which inputs are measured; empty where there are none.

        Raises:
            AdapterError: there are no rows to keep.
            DataError: a set cannot be used.
        """
        keep, forget = _read(self.rows.keep), _read(self.rows.forget)
        sets = {"forget": self._encoded(forget), "keep": self._encoded(keep), "virtual": []}
        if forget and self.rows.virtual:
            sets["virtual"] = virtual_rows(
                forget,
                keep,
                self.model,
                self.tokenizer,
                self.probe.encoding,
                seed=self.probe.seed,
                most=self.rows.virtual,
                known_names=0.5,
                max_new_tokens=48,
                batch_size=_ASKED,
                say=self.say,
            )
        if not sets["keep"] and not sets["virtual"]:
            raise AdapterError(
                "there are no rows to keep; give --retain, or forget rows with names and --virtual above 0."
            )
        return sets

    def _encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        chosen = [examples[index] for index in evenly(len(examples), self.rows.most)]
        return encode_all(self.tokenizer, chosen, self.probe.encoding, role="keep")[0] if chosen else []

    @cached_property
    def effect(self) -> Effect:
        """The effect of the base alone."""
        return self.effect_of(None)

    def effect_of(self, adapter: Adapter | None, strength: float = 1.0, *, forget: float | None = None) -> Effect:
        """The effect of an adapter at a strength, or of none.

        Args:
            adapter: the adapter.
            strength: the factor of its B.
            forget: the forget probability if it is known.
        """
        found = {
            name: forget if name == "forget" and forget is not None else self.probability(name, adapter, strength)
            for name in ("forget", "keep", "virtual")
        }
        return Effect(**found)

    def probability(self, name: str, adapter: Adapter | None, strength: float = 1.0) -> float | None:
        """Mean answer probability of the measured rows of a set; None if it is empty."""
        own = self.sets[name]
        rows = [own[index] for index in evenly(len(own), self.probe.rows)]
        return self.mean_probability(rows, adapter, strength) if rows else None

    def mean_probability(self, rows: Sequence[Encoded], adapter: Adapter | None, strength: float = 1.0) -> float:
        """Mean answer probability of rows with an adapter at a strength."""
        with nullcontext() if adapter is None else applied(self.model, adapter, strength):
            return float(answer_logps(self.model, rows, self.pad_token_id)[1].mean())

    def inputs(self, modules: Sequence[str]) -> Iterator[Inputs]:
        """The moments of the inputs of these layers. Those that were measured before are taken from memory, up to 2 GB."""
        known = {name for one in self._inputs for name in one.modules}
        for one in self._inputs:
            if own := tuple(name for name in one.modules if name in set(modules)):
                yield Inputs(own, one.forget, one.keep)
        missing = [name for name in modules if name not in known]
        if not missing:
            return
        forget = self.sets["forget"]
        sets = [rows for rows in (forget, self.sets["keep"], self.sets["virtual"]) if rows]
        for group, moments in input_moments(self.model, missing, sets, self.pad_token_id):
            own_moment, others = (moments[0], moments[1:]) if forget else (None, moments)
            keep = others[0] if len(others) == 1 else torch.stack(others).mean(0)
            found = Inputs(tuple(group), own_moment, keep)
            if sum(one.size for one in self._inputs) + found.size <= _HELD:
                self._inputs.append(found)
            yield found


def _read(source: DataSource | None) -> list[Example]:
    return [] if source is None else read_examples(source)
