"""Measure one set of a suite: read it, score all answers in one pass, generate once, and compute the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from llm_forget.data.encode import Encoded, EncodingConfig, encode_all, encode_prompt
from llm_forget.data.encode_report import EncodeReport
from llm_forget.data.examples import DataSource, Example, Message, example_id, read_examples
from llm_forget.errors import DataError
from llm_forget.evaluation.aggregate import aggregate
from llm_forget.evaluation.metrics import AnswerGroup, Metric, SetScores, averaged_values
from llm_forget.evaluation.passes.asking import check_readable, is_served, scores_of
from llm_forget.evaluation.passes.cache import Arrays, Cache, remember, rows_digest
from llm_forget.evaluation.passes.kl import has_adapter, token_kl
from llm_forget.evaluation.passes.meter import Meter
from llm_forget.evaluation.texts import text_metrics
from llm_forget.evaluation.tokens import Floats, TokenScores, as_floats
from llm_forget.model.generate import agreed
from llm_forget.model.limits import padding_id
from llm_forget.utils.digests import json_digest
from llm_forget.utils.plugins import make_named

Kind = Literal["answer", "paraphrases", "wrong_answers"]

# All metrics; a set computes those that its data allow. Metrics with two definitions are listed twice.
DEFAULT_METRICS: tuple[dict[str, Any], ...] = (
    {"name": "probability"},
    {"name": "normalised_probability"},
    {"name": "exact_memorisation"},
    {"name": "extraction_strength"},
    {"name": "entropy"},
    {"name": "truth_ratio", "definition": "arithmetic"},
    {"name": "truth_ratio", "definition": "geometric"},
    {"name": "rouge", "part": "recall"},
    {"name": "rouge", "part": "f1"},
    {"name": "rouge", "kind": "rouge1"},
    {"name": "refusal"},
    {"name": "repetition"},
    {"name": "collapse"},
    {"name": "kl_to_target"},
)


@dataclass(frozen=True)
class SetConfig:
    """One named set of a suite."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    data: DataSource
    # Whether this set should be forgotten. auto: forget if the set's name begins with "forget".
    role: Literal["auto", "forget", "other"] = "auto"
    # Kinds of answers to score; null for all kinds in the data.
    answers: list[Kind] | None = None
    # Use only every stride-th row, beginning with the first ...
    stride: int = 1
    # ... and of these only the first rows, up to this number; null for all.
    limit: int | None = None
    # Also generate an answer to each prompt, for the metrics that read text.
    generate: bool = True
    # Also measure the KL to the model before unlearning at each token: one forward pass of each model. auto: if that model is
    # available.
    kl: bool | Literal["auto"] = False
    # The probability that this set contributes to the model utility: probability, or normalised_probability if the wrong
    # answers are the other choices; null if the set is not part of the model utility.
    utility: Literal["probability", "normalised_probability"] | None = None
    # Few-shot examples placed before each prompt, for models without instruction tuning.
    shots: DataSource | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.stride < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"stride is {self.stride} and limit {self.limit}; give 1 or more, or null for no limit")
        if self.answers is not None and "answer" not in self.answers:
            raise ValueError("answers lacks `answer`, which the other kinds are compared with; add it")


@dataclass(frozen=True)
class SamplingConfig:
    """Leak@k on the forget sets. It generates several answers per prompt, so it runs only on request."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # Sampled answers per prompt, at least the largest k.
    samples: int = 64
    temperature: float = 1.0
    k: list[int] = field(default_factory=lambda: [1, 8, 64])
    # A sample reveals the answer if its ROUGE-L recall is at least this: the share of the answer's words in it, in order.
    threshold: float = 0.8

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; give a value above 0 (greedy answers are generated in any case)"
            )
        if not self.k or min(self.k) < 1 or max(self.k) > self.samples:
            raise ValueError(f"k is {self.k} and samples is {self.samples}; give each k from 1 up to samples")
        if not 0 < self.threshold <= 1:
            raise ValueError(
                f"threshold is {self.threshold}; give a share of the answer's words, above 0 and at most 1"
            )


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy generation, and sampling on request."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # Longest answer in tokens, including the end token.
    max_new_tokens: int = 64
    # Prompts per batch. In bf16, another batch size can change a token if two logits are almost equal.
    batch_size: int = 16
    # Also sample answers on the forget sets, for leak@k; null for none.
    sampling: SamplingConfig | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens} and batch_size {self.batch_size}; both must be 1 or more"
            )


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer and the settings of an evaluation.

    ``model`` is a module or a ``ServedModel``. ``target`` is the model before unlearning; None for ``model`` with its adapter
    disabled.
    """

    model: Any
    tokenizer: Any
    encoding: EncodingConfig
    generation: GenerationConfig
    batch_tokens: int = 2048
    accelerator: Any = None
    cache: Cache | None = None
    meter: Meter = field(default_factory=Meter)
    # Whether results and cache may contain generated texts.
    keep_text: bool = False
    target: Any = None
    # Digest of a given target, for the cache; if None, values that depend on the given target are not cached.
    target_digest: str | None = None

    @property
    def has_target(self) -> bool:
        """Whether the KL to a target can be measured."""
        return not is_served(self.model) and (self.target is not None or has_adapter(self.model))

    @property
    def pad_token_id(self) -> int:
        """The padding token. Masks depend on positions, so any id works that the model has."""
        return padding_id(self.tokenizer, self.model)


@dataclass(frozen=True)
class Measured:
    """The measurements of one set.

    Attributes:
        ids: (E) a unique id for each example; a repeated example gets ``#2``, ``#3``, …
        scores: token scores and generated texts.
        by_metric: label → (E,) one score per example.
        metrics: label → the metric.
        warnings: warnings for the user, without any text of the data.
    """

    ids: tuple[str, ...]
    scores: SetScores = field(repr=False)
    by_metric: dict[str, Floats] = field(repr=False)
    metrics: dict[str, Metric]
    warnings: tuple[str, ...] = ()


def make_metrics(named: Sequence[str | Mapping[str, Any]] | None) -> list[Metric]:
    """Create the metrics that a suite asks for: names, or mappings with a name and settings; None for all.

    Raises:
        RecipeError: a metric or setting is unknown, or two metrics have the same label.
    """
    entries = DEFAULT_METRICS if named is None else named
    return make_named(entries, "llm_forget.evaluation.metrics", "per_example")


def read_set(
    name: str, config: SetConfig, in_memory: Sequence[Example] | None = None, notes: list[str] | None = None
) -> list[Example]:
    """Read the examples of a set, or take them from memory. ``notes`` gets lines for the user about how a file was read.

    Raises:
        DataError: they cannot be read, or no row has a requested kind of answer.
    """
    found = read_examples(config.data, notes) if in_memory is None else list(in_memory)
    examples = found[:: config.stride][: config.limit]
    for kind in config.answers or []:
        if kind != "answer" and not any(_other_answers(example, kind) for example in examples):
            column = "paraphrased_answer" if kind == "paraphrases" else "perturbed_answer"
            raise DataError(
                f"{config.data.path}: the {name} set asks for {kind}, but no row has a {column}; "
                "remove it from `answers`, or give the column's name in `columns`"
            )
    if config.shots is None:
        return examples
    shots = _as_turns(name, read_examples(config.shots, notes))
    # the id does not change: it identifies the question, and the shots are only a way to ask it
    return [replace(example, prompt=(*shots, *_turns_of(name, example))) for example in examples]


def _as_turns(name: str, shots: Sequence[Example]) -> list[Message]:
    return [turn for shot in shots for turn in (*_turns_of(name, shot), Message("assistant", shot.answer))]


def _turns_of(name: str, example: Example) -> tuple[Message, ...]:
    if isinstance(example.prompt, str):
        raise DataError(f"{name}: shots need questions, but {example.source} is text without a question; remove shots")
    return example.prompt


def _other_answers(example: Example, kind: str) -> tuple[str, ...]:
    return example.paraphrases if kind == "paraphrases" else example.wrong_answers


def measure_set(
    name: str, config: SetConfig, examples: Sequence[Example], metrics: Sequence[Metric], loaded: Loaded
) -> Measured:
    """Score and generate once, and compute each metric that the set's data allow.

    Args:
        name: the set's name.
        config: the set's settings.
        examples: its examples, at least one.
        metrics: the requested metrics.
        loaded: the model.
    """
    wanted = {"answer", "paraphrases", "wrong_answers"} if config.answers is None else set(config.answers)
    rows, report = encode_all(loaded.tokenizer, examples, loaded.encoding, role=name)
    own_rows = len(rows)
    warnings = list(report.warnings)
    groups: dict[str, tuple[int, EncodeReport, list[int]]] = {}
    for kind in ("paraphrases", "wrong_answers"):
        if kind not in wanted:
            continue
        if found := _encode_others(name, kind, examples, loaded):
            groups[kind] = (len(rows), found[1], found[2])
            rows = rows + found[0]
            warnings += found[1].warnings
    warnings += check_readable(loaded.model, rows, name)
    scores = score_all(rows, loaded)
    known = SetScores(
        forget=is_forget(name, config),
        answer=scores.select(0, own_rows).grouped(report.owners, len(examples)),
        paraphrases=_group(scores, groups.get("paraphrases"), len(examples)),
        wrong_answers=_group(scores, groups.get("wrong_answers"), len(examples)),
        references=[example.answer for example in examples],
        target_kl=target_kl(rows[:own_rows], loaded) if _wants_kl(config, metrics, loaded) else None,
    )
    usable = {metric.label: metric for metric in metrics if _is_known(metric, known, config.generate)}
    reading = [metric for metric in usable.values() if "generated" in metric.needs]
    by_text: dict[str, Floats] = {}
    if config.generate and (reading or loaded.keep_text):
        prompts = [encode_prompt(loaded.tokenizer, example, loaded.encoding) for example in examples]
        begun = _begun(rows[:own_rows], scores, report.owners, prompts)
        by_text, known = text_metrics(reading, known, rows, prompts, begun, loaded)
    by_metric = {
        label: by_text[label] if label in by_text else metric.per_example(known) for label, metric in usable.items()
    }
    return Measured(unique_ids([example.id for example in examples]), known, by_metric, usable, tuple(warnings))


def _begun(
    rows: Sequence[Encoded], scores: TokenScores, owners: Sequence[int], prompts: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """For each prompt, the tokens of its own answer with which the model's greedy answer begins, as the scores tell."""
    begun: list[tuple[int, ...]] = [()] * len(prompts)
    for place, (row, owner) in enumerate(zip(rows, owners, strict=True)):
        if row.part == 0 and row.input_ids[: row.prompt_length] == prompts[owner]:
            begun[owner] = agreed(row.input_ids[row.prompt_length :], scores.row(place).hits.tolist())
    return begun


def score_all(rows: Sequence[Encoded], loaded: Loaded) -> TokenScores:
    """Score rows with the evaluation's model, cache, processes and progress bar."""
    with loaded.meter.bar("answers scored", len(rows)) as progress:
        return scores_of(
            loaded.model,
            loaded.tokenizer,
            rows,
            batch_tokens=loaded.batch_tokens,
            progress=progress,
            accelerator=loaded.accelerator,
            cache=loaded.cache,
        )


def _is_known(metric: Metric, known: SetScores, generates: bool) -> bool:
    return all(known.has(need) or (need == "generated" and generates) for need in metric.needs)


def _wants_kl(config: SetConfig, metrics: Sequence[Metric], loaded: Loaded) -> bool:
    return bool(config.kl) and loaded.has_target and any("target_kl" in metric.needs for metric in metrics)


def target_kl(rows: Sequence[Encoded], loaded: Loaded) -> Floats:
    """(N,) KL to the target at each answer token of the rows; the cache key includes both models."""

    def compute() -> Arrays:
        with loaded.meter.bar("answers compared", len(rows)) as progress:
            found = token_kl(
                loaded.model,
                loaded.target,
                rows,
                pad_token_id=loaded.pad_token_id,
                batch_tokens=loaded.batch_tokens,
                progress=progress,
                accelerator=loaded.accelerator,
            )
        return {"kl": found}

    known = loaded.target is None or loaded.target_digest is not None
    parts = {"rows": rows_digest(rows), "target": loaded.target_digest, "batch_tokens": loaded.batch_tokens}
    return as_floats(remember(loaded.cache if known else None, loaded.accelerator, "kl", parts, compute)["kl"])


def is_forget(name: str, config: SetConfig) -> bool:
    """Whether a set is a forget set."""
    return name.startswith("forget") if config.role == "auto" else config.role == "forget"


def _encode_others(
    name: str, kind: str, examples: Sequence[Example], loaded: Loaded
) -> tuple[list[Encoded], EncodeReport, list[int]] | None:
    """Encode the other answers of all examples, with a report and the index of each answer's example; None without any."""
    pairs = [(owner, text) for owner, example in enumerate(examples) for text in _other_answers(example, kind)]
    if not pairs:
        return None
    owners = [owner for owner, _ in pairs]
    rows, report = encode_all(
        loaded.tokenizer,
        [examples[owner] for owner in owners],
        loaded.encoding,
        role=f"{name} ({kind})",
        answers=[text for _, text in pairs],
    )
    return rows, report, owners


def _group(scores: TokenScores, place: tuple[int, EncodeReport, list[int]] | None, examples: int) -> AnswerGroup | None:
    if place is None:
        return None
    start, report, owners = place
    found = scores.select(start, start + report.rows).grouped(report.owners, len(owners))
    return AnswerGroup(found, np.array(owners, dtype=np.int64), examples)


def unique_ids(ids: Sequence[str]) -> tuple[str, ...]:
    """Make the ids of repeated examples unique."""
    seen: dict[str, int] = {}
    named = []
    for one in ids:
        seen[one] = seen.get(one, 0) + 1
        named.append(one if seen[one] == 1 else f"{one}#{seen[one]}")
    return tuple(named)


def set_digest(config: SetConfig, examples: Sequence[Example]) -> str:
    """Digest of a set: the ids of its examples in order, and its prompts if it has few-shot examples."""
    ids = unique_ids([example.id for example in examples])
    asked = [] if config.shots is None else [example_id(example.prompt, example.answer) for example in examples]
    return json_digest([*ids, *asked])


def set_results(
    measured: Measured, more: Mapping[str, Sequence[float | None] | Floats], *, keep_text: bool
) -> dict[str, Any]:
    """Build a set's entry in the result: aggregates by metric, and scores by example id.

    Args:
        measured: the set's measurements.
        more: label → (E) further scores per example, such as an attack's.
        keep_text: include the generated answers, which may contain the forgotten data.
    """
    forget = measured.scores.forget
    metrics = {}
    for label, scores in measured.by_metric.items():
        metric = measured.metrics[label]
        metrics[label] = {
            **asdict(aggregate(averaged_values(metric, scores, forget=forget), bounds=metric.bounds)),
            "bounds": list(metric.bounds),
            "forgotten": metric.forgotten if forget else "none",
        }
        if hasattr(metric, "averaged"):
            metrics[label]["averaged"] = True
    examples: dict[str, dict[str, Any]] = {
        one: {label: float(scores[index]) for label, scores in measured.by_metric.items()}
        for index, one in enumerate(measured.ids)
    }
    if keep_text and measured.scores.generated is not None:
        for one, text in zip(measured.ids, measured.scores.generated, strict=True):
            examples[one]["generated"] = text
    for label, values in more.items():
        for one, value in zip(measured.ids, values, strict=True):
            examples[one][label] = value
    return {"forget": forget, "n": len(measured.ids), "metrics": metrics, "examples": examples}
