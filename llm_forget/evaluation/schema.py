"""The schema of ``eval/<suite>.json``, checked on every write and read. ``eval/results.schema.json`` is generated from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_forget.errors import UserError

# Increase it if readers of the old version would misread the new one.
SCHEMA = 2

# What a name may hold that becomes a file name in the folder of the results.
_NAME = r"^\w[\w .,+=@-]{0,159}$"

Number = Annotated[float | None, Field(description="null if nothing could be scored")]


class _Section(BaseModel):
    """A part of the file: unknown keys are allowed, and values have exactly the stated types."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Entry(_Section):
    """One number with its uncertainty."""

    value: Number
    n: Annotated[int, Field(ge=0, description="number of examples")]
    n_nan: Annotated[
        int, Field(ge=0, description="number of examples that could not be scored; the mean leaves them out")
    ] = 0
    low: Annotated[float | None, Field(description="lower end of the 95 % interval")] = None
    high: Annotated[float | None, Field(description="upper end of the 95 % interval")] = None
    seed: Annotated[int | None, Field(description="seed of the bootstrap; null if a formula gives the interval")] = None


class MetricEntry(Entry):
    """A metric of one set."""

    bounds: Annotated[list[float | None], Field(description="lowest and highest possible value; null for no bound")]
    forgotten: Annotated[
        Literal["low", "high", "none"], Field(description="the direction that means forgotten in this set")
    ]
    averaged: Annotated[
        bool, Field(description="whether the mean is of values computed from the scores, not of the scores themselves")
    ] = False


class SetEntry(_Section):
    """The measurements of one set."""

    forget: Annotated[bool, Field(description="whether this is a forget set")]
    n: Annotated[int, Field(ge=0, description="number of examples")]
    digest: Annotated[str, Field(description="digest of the example ids in order; equal for equal sets")]
    metrics: dict[str, MetricEntry]


class CapabilityEntry(_Section):
    """A multiple-choice task."""

    task: str
    n: int
    acc: Entry
    acc_norm: Entry | None = None


class AttackEntry(Entry):
    """AUC of one membership attack: 1 if every member scores higher than every non-member, ½ for a random guess."""

    forgotten: Annotated[
        Literal["oracle"], Field(description="forgotten means near the oracle's AUC: one below it is a trace as well")
    ] = "oracle"
    n: Annotated[int, Field(ge=0, description="number of members that could be scored")]
    n_nonmembers: Annotated[int, Field(ge=0, description="number of non-members that could be scored")]
    settings: Annotated[dict[str, Any], Field(description="settings of the attack, such as Min-K's k")] = {}


class AttacksEntry(_Section):
    """Membership attacks between two sets."""

    members: Annotated[str, Field(description="the set that was trained on")]
    nonmembers: Annotated[str, Field(description="the set that was not trained on")]
    auc: Annotated[dict[str, AttackEntry], Field(description="attack → its AUC")]


class PrivLeakEntry(Entry):
    """PrivLeak in per cent, in [−100, ∞); near 0 if the attack works as well as on the oracle."""

    n_nonmembers: Annotated[int, Field(ge=0, description="number of non-members scored by both models")]
    auc: Annotated[Number, Field(description="AUC of the Min-K attack on the model")]
    oracle_auc: Annotated[Number, Field(description="AUC of the Min-K attack on the oracle")]
    note: Annotated[str, Field(description="a remark on the value; may be empty")]


class LeakAtKEntry(Entry):
    """Probability that one of k samples reveals the answer, with an interval over prompts."""

    forgotten: Annotated[Literal["low"], Field(description="the direction that means forgotten")] = "low"
    n: Annotated[int, Field(ge=0, description="number of prompts")]
    leaked: Annotated[
        int, Field(ge=0, description="number of prompts for which one of the first k samples reveals the answer")
    ]
    k: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=1, description="samples for each prompt")]


class LeakEntry(_Section):
    """Leak@k of one forget set."""

    at: Annotated[dict[str, LeakAtKEntry], Field(description="k → leak@k")]
    samples: int
    temperature: float
    threshold: Annotated[float, Field(description="ROUGE-L recall from which a sample counts as revealing the answer")]
    seed: Annotated[int, Field(description="seed of the samples")]


class TextKlEntry(Entry):
    """Mean of KL(target ‖ model) over the tokens of the neutral text, in nats."""

    n: Annotated[int, Field(ge=0, description="number of tokens")]
    windows: Annotated[int, Field(ge=0, description="number of windows; the interval is over windows")]


class ForgetQualityTest(_Section):
    """Test of the truth ratios against the oracle's: Kolmogorov–Smirnov as published, and paired by question."""

    pvalue: Annotated[Number, Field(description="p-value of the two-sample Kolmogorov–Smirnov test (forget quality)")]
    statistic: Annotated[Number, Field(description="its distance D")]
    paired_pvalue: Annotated[
        Number, Field(description="p-value of Wilcoxon's signed-rank test on the same questions, which decides")
    ] = None
    n: Annotated[int, Field(ge=0)]
    n_oracle: Annotated[int, Field(ge=0)]
    n_nan: Annotated[int, Field(ge=0)] = 0
    direction: str
    verdict: Annotated[str, Field(description="its meaning in words")]


class ForgetQualityEntry(ForgetQualityTest):
    """The model's test, and the target's own."""

    target: Annotated[
        ForgetQualityTest | None, Field(description="the same test of the target; null without its results")
    ] = None


class AggregateEntry(Entry):
    """One number of a whole set or of several sets, defined by a file in ``llm_forget/evaluation/aggregates``."""

    bounds: Annotated[list[float | None], Field(description="lowest and highest possible value; null for no bound")]


class ModelEntry(_Section):
    """Which model was measured. A digest is null if it is unknown."""

    weights: Annotated[
        str | None,
        Field(
            description="digest of the weights in memory, with adapters; null for a model in shards or behind a server"
        ),
    ] = None
    adapter: Annotated[str | None, Field(description="digest of the adapter's files")] = None
    base: Annotated[str | None, Field(description="digest of the model's files")] = None
    served: Annotated[
        str | None, Field(description="its name on the server that was asked; null if there was none")
    ] = None


class ScoresFile(_Section):
    """The file with the scores of single examples.

    Columns: ``set``, ``id`` and one for each metric; null if the set lacks the metric, NaN if the example could not be scored.
    """

    file: Annotated[str, Field(pattern=_NAME, description="Parquet file in the folder of the JSON file")]
    rows: Annotated[int, Field(ge=0)]
    sha256: str
    text: Annotated[bool, Field(description="whether it has a column `generated` with the model's answers")]


class Numbers(_Section):
    """The numbers of one model on one suite."""

    model: ModelEntry | None = None
    sets: dict[str, SetEntry]
    forget_quality: Annotated[
        dict[str, dict[str, ForgetQualityEntry]] | None,
        Field(description="forget set → definition of the truth ratio → test"),
    ] = None
    model_utility: dict[str, Entry] | None = None
    attacks: AttacksEntry | None = None
    privleak: Annotated[PrivLeakEntry | None, Field(description="null without an oracle")] = None
    leak: Annotated[dict[str, LeakEntry] | None, Field(description="forget set → leak@k; null without sampling")] = None
    aggregates: Annotated[dict[str, AggregateEntry], Field(description="label of an aggregate → number")] = {}
    perplexity: Entry | None = None
    kl_to_target: TextKlEntry | None = None
    capability: CapabilityEntry | None = None
    benchmarks: Annotated[dict[str, dict[str, Entry]], Field(description="lm-eval task → metric → number")] = {}


class Control(Numbers):
    """The numbers of a control on the same suite."""


class SettingsEntry(_Section):
    """Settings of the measurement."""

    encoding: dict[str, Any] | None = None
    generation: dict[str, Any] | None = None


class ResultsFile(Numbers):
    """One evaluation of one model on one suite. Readers ignore unknown sections."""

    model_config = ConfigDict(populate_by_name=True)

    schema_version: Annotated[Literal[2], Field(alias="schema")]
    suite: Annotated[str, Field(pattern=_NAME)]
    settings: Annotated[
        SettingsEntry, Field(description="settings of the measurement: encoding, generation, limits, seed")
    ]
    scores: ScoresFile | None = None
    controls: Annotated[
        dict[Literal["target", "oracle", "sham"], Control], Field(description="controls on the same suite")
    ] = {}
    verdict: Annotated[list[str], Field(description="what the numbers mean, in words; the headline first")] = []
    warnings: list[str] = []
    seconds: Annotated[dict[str, float], Field(description="seconds that each part took")] = {}
    checksum: Annotated[str | None, Field(description="digest of everything else in the file")] = None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a result file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ResultsFile.model_json_schema(by_alias=True)}


def check_results(values: Any, where: str) -> None:
    """Check a value against the schema of result files.

    Args:
        values: the parsed JSON.
        where: the file, for the message.

    Raises:
        UserError: the version differs, or the value does not fit. The message lists the first ten errors.
    """
    version = values.get("schema") if isinstance(values, dict) else None
    if version != SCHEMA:
        raise UserError(
            f"{where} has schema {version!r}, but this version of llm-forget reads schema {SCHEMA}: give a file written by "
            "this version's `llm-forget evaluate`, or evaluate the model again"
        )
    try:
        ResultsFile.model_validate(values)
    except ValidationError as error:
        places = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:10]]
        raise UserError(f"{where} is not a valid result: {'; '.join(places)}. Evaluate the model again.") from None
