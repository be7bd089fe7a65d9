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
    forget_quality: dict[str, Any] | None = None
    model_utility: dict[str, Entry] | None = None
    attacks: dict[str, Any] | None = None
    privleak: dict[str, Any] | None = None
    leak: dict[str, Any] | None = None
    perplexity: Entry | None = None
    kl_to_target: dict[str, Any] | None = None
    capability: CapabilityEntry | None = None
    benchmarks: Annotated[dict[str, dict[str, Entry]], Field(description="task of lm-eval → metric → number")] = {}
    controls: Annotated[dict[Literal["target", "oracle", "sham"], Control], Field(description="measured alike")] = {}
    verdict: list[str] = []
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
