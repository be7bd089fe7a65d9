"""Read, check and encode the data of a run, before any model is loaded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from llm_forget.config import UnlearnData
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all
from llm_forget.data.examples import Example, check_overlap, read_examples
from llm_forget.data.sources import resolve_sources
from llm_forget.utils.digests import json_digest

Row = TypeVar("Row")


@dataclass(frozen=True)
class UnlearnSets:
    """The data of a run.

    Attributes:
        forget: rows to forget.
        forget_examples: for each row of ``forget``, its example as text, for alternative answers.
        retain: rows for the retain term.
        validation: rows on which the utility floor is measured: a sample of the validation set or of the retain rows.
        holdout: rows that were never trained on.
        digests: set → digest of the ids of its examples.
        warnings: warnings for the user.
        encoding: set → counts of its encoding, such as truncated examples, for ``result.json``.
        retain_examples: the retain examples as text, for the names in them.
    """

    forget: list[Encoded]
    forget_examples: list[Example]
    retain: list[Encoded]
    validation: list[Encoded]
    holdout: list[Encoded]
    digests: dict[str, str]
    warnings: list[str]
    encoding: dict[str, dict[str, int]] = field(default_factory=dict)
    retain_examples: list[Example] = field(default_factory=list, repr=False)


def prepare(
    data: UnlearnData,
    encoding: EncodingConfig,
    tokenizer: Any,
    *,
    rows: int,
    seed: int,
    data_dir: str | None = None,
    in_memory: Mapping[str, list[Example]] = MappingProxyType({}),
) -> UnlearnSets:
    """Read, check and encode all sets of a run.

    Args:
        data: the sources of the sets.
        encoding: the recipe's ``encoding`` section.
        tokenizer: encodes the rows.
        rows: size of the sample of the validation set. The holdout's has twice as many, because the targets depend on it.
        seed: seed of the order of the forget rows and of these samples.
        data_dir: a folder with the files that ``data`` names; None reads each set from its path.
        in_memory: set → its examples, for sets that are already in memory; the others are read from ``data``.

    Raises:
        RecipeError: a file is missing in ``data_dir``.
        DataError: bad rows, an empty set, an answer without tokens, a row over the length limit, or overlap.
    """
    named = {name: getattr(data, name) for name in ("forget", "retain", "validation", "holdout")}
    sources, warnings = resolve_sources(
        {name: [source] for name, source in named.items() if source is not None and name not in in_memory},
        data_dir,
        "this recipe",
    )
    read = {
        name: in_memory[name]
        if name in in_memory
        else [row for one in sources.get(name, []) for row in read_examples(one, warnings)]
        for name in named
    }
    for name in ("retain", "validation", "holdout"):
        if read[name]:
            warnings += check_overlap(read["forget"], read[name])
    read["forget"] = _shuffled(read["forget"], seed)
    encoded: dict[str, list[Encoded]] = {}
    counts: dict[str, dict[str, int]] = {}
    forget_examples = read["forget"]
    for name, examples in read.items():
        encoded[name] = []
        if examples:
            encoded[name], report = encode_all(tokenizer, examples, encoding, role=name)
            warnings += report.warnings
            counts[name] = report.counts()
            if name == "forget" and report.chunked:
                # the parts of a document must not stand together, because samples are the first rows
                mixed = _shuffled(list(zip(encoded[name], report.owners, strict=True)), seed)
                encoded[name] = [row for row, _ in mixed]
                forget_examples = [examples[owner] for _, owner in mixed]
    return UnlearnSets(
        forget=encoded["forget"],
        forget_examples=forget_examples,
        retain=encoded["retain"],
        validation=_shuffled(encoded["validation"] or encoded["retain"], seed)[:rows],
        holdout=_shuffled(encoded["holdout"], seed)[: 2 * rows],
        digests={
            name: json_digest(sorted(item.id for item in examples)) for name, examples in read.items() if examples
        },
        warnings=warnings,
        encoding=counts,
        retain_examples=read["retain"],
    )


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """Shuffle the rows, so that the first n are a random sample."""
    return random.Random(f"{seed} sample").sample(list(rows), len(rows))
