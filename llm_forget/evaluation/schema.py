"""The form of ``eval/<suite>.json``, checked whenever one is written or read; ``eval/results.schema.json`` is made from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_forget.errors import UserError

# Raise it when a reader of the old form would misread the new one.
SCHEMA = 2

Number = Annotated[float | None, Field(description="null where nothing could be scored")]


class Entry(BaseModel):
    """One number with what says how far to trust it."""

    model_config = ConfigDict(extra="allow")

    value: Number
    n: Annotated[int, Field(ge=0, description="examples that it is from")]
    n_nan: Annotated[int, Field(ge=0, description="examples that could not be scored; they are in no mean")] = 0
    low: Annotated[float | None, Field(description="lower end of the 95 % interval")] = None
    high: Annotated[float | None, Field(description="upper end of the 95 % interval")] = None
    seed: Annotated[int | None, Field(description="of the bootstrap; null for an interval by a formula")] = None


class MetricEntry(Entry):
    """A metric of one set."""

    bounds: Annotated[list[float | None], Field(description="lowest and highest value; null for none")]
    forgotten: Annotated[Literal["low", "high", "none"], Field(description="which end means forgotten in this set")]


class SetEntry(BaseModel):
    """What was measured of one named set."""

    model_config = ConfigDict(extra="allow")

    forget: Annotated[bool, Field(description="whether it is what should be forgotten")]
    n: Annotated[int, Field(ge=0, description="examples")]
    digest: Annotated[str, Field(description="of the examples' ids, in order: equal for equal sets")]
    metrics: dict[str, MetricEntry]


class CapabilityEntry(BaseModel):
    """A multiple-choice task."""

    model_config = ConfigDict(extra="allow")

    task: str
    n: int
    acc: Entry
    acc_norm: Entry | None = None


class AttackEntry(Entry):
    """AUC of one membership attack; 1 where every member scores higher, ½ where nothing tells members apart."""

    n: Annotated[int, Field(ge=0, description="members that could be scored")]
    n_nonmembers: Annotated[int, Field(ge=0, description="non-members that could be scored")]
    settings: Annotated[dict[str, Any], Field(description="of the attack, such as Min-K's k")] = {}


class AttacksEntry(BaseModel):
    """Membership attacks between two sets."""

    model_config = ConfigDict(extra="allow")

    members: Annotated[str, Field(description="the set that was trained on")]
    nonmembers: Annotated[str, Field(description="the set that was not")]
    auc: Annotated[dict[str, AttackEntry], Field(description="attack → its AUC")]


class PrivLeakEntry(Entry):
    """PrivLeak in per cent, from −100 up without a bound; near 0 where the model gives away what the oracle does."""

    n_nonmembers: Annotated[int, Field(ge=0, description="non-members that both models could be scored on")]
    auc: Annotated[Number, Field(description="of the Min-K attack on the model")]
    oracle_auc: Annotated[Number, Field(description="of the Min-K attack on the oracle")]
    note: Annotated[str, Field(description="what to know when reading the value; empty for nothing")]


class LeakAtKEntry(Entry):
    """Chance that one of k samples reveals the answer; the interval is Clopper and Pearson's."""

    n: Annotated[int, Field(ge=0, description="prompts")]
    leaked: Annotated[int, Field(ge=0, description="prompts of which one of the first k samples reveals the answer")]
    k: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=1, description="samples of each prompt")]


class LeakEntry(BaseModel):
    """Leak@k of one forget set."""

    model_config = ConfigDict(extra="allow")

    at: Annotated[dict[str, LeakAtKEntry], Field(description="k → leak@k")]
    samples: int
    temperature: float
    threshold: Annotated[float, Field(description="ROUGE-L recall from which a sample reveals the answer")]
    seed: Annotated[int, Field(description="of the samples")]


class TextKlEntry(Entry):
    """Mean of KL(target ‖ model) over the tokens of the neutral text, in nats."""

    n: Annotated[int, Field(ge=0, description="tokens")]
    windows: Annotated[int, Field(ge=0, description="windows that they lie in; the bootstrap is over these")]


class ForgetQualityEntry(BaseModel):
    """Two-sample Kolmogorov–Smirnov test of the truth ratios against the oracle's."""

    model_config = ConfigDict(extra="allow")

    pvalue: Number
    statistic: Number
    n: Annotated[int, Field(ge=0)]
    n_oracle: Annotated[int, Field(ge=0)]
    n_nan: Annotated[int, Field(ge=0)] = 0
    direction: str
    verdict: Annotated[str, Field(description="what it means, in words")]


class AggregateEntry(Entry):
    """One number of a whole set or of several sets, by its file in ``llm_forget/evaluation/aggregates``."""

    bounds: Annotated[list[float | None], Field(description="lowest and highest value; null for none")]


class Control(BaseModel):
    """The numbers of a control that went through the same suite."""

    model_config = ConfigDict(extra="allow")

    sets: dict[str, SetEntry]


class ScoresFile(BaseModel):
    """Where the scores of single examples are.

    Columns ``set``, ``id`` and one a metric: null where a set does not have it, NaN where an example could not be scored.
    """

    file: Annotated[str, Field(description="Parquet, beside the JSON file")]
    rows: int
    sha256: str
    text: Annotated[bool, Field(description="whether it has a column `generated` with what the model said")]


class ResultsFile(BaseModel):
    """One evaluation of one model by one suite. Sections that a reader does not know are to be passed over."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    schema_version: Annotated[Literal[2], Field(alias="schema")]
    suite: str
    settings: Annotated[dict[str, Any], Field(description="how it was measured: encoding, generation, limits, seed")]
    sets: dict[str, SetEntry]
    scores: ScoresFile | None = None
    forget_quality: Annotated[
        dict[str, dict[str, ForgetQualityEntry]] | None,
        Field(description="forget set → definition of the truth ratio → test"),
    ] = None
    model_utility: dict[str, Entry] | None = None
    attacks: AttacksEntry | None = None
    privleak: Annotated[PrivLeakEntry | None, Field(description="null without an oracle")] = None
    leak: Annotated[dict[str, LeakEntry] | None, Field(description="by forget set; null without sampling")] = None
    aggregates: Annotated[dict[str, AggregateEntry], Field(description="label of an aggregate → number")] = {}
    perplexity: Entry | None = None
    kl_to_target: TextKlEntry | None = None
    capability: CapabilityEntry | None = None
    benchmarks: Annotated[dict[str, dict[str, Entry]], Field(description="task of lm-eval → metric → number")] = {}
    controls: Annotated[dict[Literal["target", "oracle", "sham"], Control], Field(description="measured alike")] = {}
    verdict: Annotated[list[str], Field(description="what the figures mean beside the controls, in words")] = []
    warnings: list[str] = []
    seconds: Annotated[dict[str, float], Field(description="that each part took")] = {}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a result file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ResultsFile.model_json_schema(by_alias=True)}


def check_results(values: Any, where: str) -> None:
    """Make sure that something has the form of a result file.

    Args:
        values: what JSON gave.
        where: the file, for the message.

    Raises:
        UserError: another version, or the places that do not fit, the first ten of them.
    """
    version = values.get("schema") if isinstance(values, dict) else None
    if version != SCHEMA:
        raise UserError(
            f"{where} has schema {version!r}, and this version reads {SCHEMA}: give a file that `llm-forget evaluate` wrote, "
            "and measure again what an earlier version measured"
        )
    try:
        ResultsFile.model_validate(values)
    except ValidationError as error:
        places = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:10]]
        raise UserError(f"{where} is no valid result: {'; '.join(places)}. Measure it again.") from None
