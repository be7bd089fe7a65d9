"""Read the files of one run folder, which may come from somebody else: types are checked here and nowhere else.

What does not fit is left out and named in a note, so the rest of the run can still be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_forget.errors import UserError
from llm_forget.evaluation.recount import doubts_about
from llm_forget.evaluation.results import StoredResults, open_results
from llm_forget.utils.files import edits, folder_digest, folder_size
from llm_forget.utils.safe_json import NotPlainJson, parse_json, read_json, read_text
from llm_forget.utils.safe_yaml import NotPlainYaml, load_yaml

RESULT_NAME, RECIPE_NAME, METRICS_NAME = "result.json", "recipe.yaml", "metrics.jsonl"
_MOST_METRICS = 64 << 20  # bytes of metrics.jsonl
_MOST_ROWS = 100_000  # lines of it
_MOST_ENTRIES = 2_000  # dotted keys of a recipe or an environment; each is a column of the table
_CURVES = ("loss", "forget_loss", "retain_loss", "forget", "retain")  # columns that are plotted
_MOST_DIGESTED = 1 << 30  # bytes of weights that are digested again when a run is read
_LARGEST = 1 << 63
_MOST_SHOWN = 5  # problems named in one note

# Sections of a recipe that readers look into; a fine-tuning recipe has a list of data.
_SECTIONS = {"model": dict | None, "encoding": dict | None, "data": dict | list | None}

_Text = Annotated[str, Field(max_length=10_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Moment(_Strict):
    """A measurement of the run on its own samples."""

    step: Annotated[int, Field(ge=0)] = 0
    forget: float | None = None
    retain: float | None = None


class _Result(_Strict):
    """What readers use of ``result.json``; other keys are kept as they are."""

    method: _Text | None = None
    reason: _Text | None = None
    before: _Moment | None = None
    after: _Moment | None = None
    forget_target: float | None = None
    utility_floor: float | None = None
    steps: Annotated[int, Field(ge=0)] | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    details: Annotated[dict[str, float | None], Field(max_length=1_000)] | None = None
    data_digests: Annotated[dict[str, str], Field(max_length=1_000)] | None = None
    base_digest: str | None = None
    adapter_digest: str | None = None
    model_digest: str | None = None
    forget_rows: Annotated[int, Field(ge=0)] | None = None
    retain_rows: Annotated[int, Field(ge=0)] | None = None
    rows: Annotated[int, Field(ge=0)] | None = None
    environment: dict[str, Any] | None = None
    checksum: str | None = None


def read_result(folder: Path, notes: list[str]) -> dict[str, Any]:
    """The content of ``result.json`` without the fields of another type, which are named in ``notes``; {} without the file.

    Raises:
        UserError: the file is no JSON object.
    """
    file = folder / RESULT_NAME
    if not file.is_file():
        return {}
    found = _read_object(file)
    problems = _problems(_Result, found)
    kept = {key: value for key, value in found.items() if key not in problems}
    if "method" in problems:
        kept["method"] = None  # only unlearning runs have the key
    if problems:
        notes.append(f"{RESULT_NAME}: left out {_listed(problems)}")
    if edited := edits(found):
        notes.append(f"{RESULT_NAME} {edited}")
    return kept


def read_environment(folder: Path, result: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The content of ``env.json``, or the environment in the result."""
    file = folder / "env.json"
    try:
        found = _read_object(file) if file.is_file() else dict(result.get("environment") or {})
    except UserError as error:
        notes.append(str(error))
        return {}
    if _entries(found) > _MOST_ENTRIES:
        notes.append(f"the environment has more than {_MOST_ENTRIES} entries; left out")
        return {}
    return found


def read_recipe(folder: Path, notes: list[str]) -> dict[str, Any]:
    """The recipe as plain values with texts as keys; {} if it is missing or cannot be used."""
    file = folder / RECIPE_NAME
    if not file.exists():
        return {}
    try:
        found = load_yaml(read_text(file, 4 << 20))
    except (NotPlainJson, NotPlainYaml) as error:
        notes.append(f"{RECIPE_NAME} is not a recipe: {error}")
        return {}
    if not isinstance(found, dict):
        notes.append(f"{RECIPE_NAME} holds no keys and values")
        return {}
    if _entries(found) > _MOST_ENTRIES:
        notes.append(f"{RECIPE_NAME} has more than {_MOST_ENTRIES} entries; left out")
        return {}
    recipe: dict[str, Any] = _plain(found)
    for section, kinds in _SECTIONS.items():
        if not isinstance(recipe.get(section), kinds):
            notes.append(f"{RECIPE_NAME}: {section} is a {type(recipe.pop(section)).__name__}; left out")
    return recipe


def read_metrics(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` that can be used."""
    file = folder / METRICS_NAME
    if not file.exists():
        return []
    try:
        lines = read_text(file, _MOST_METRICS).split("\n")
    except NotPlainJson as error:
        notes.append(f"{METRICS_NAME} {error}")
        return []
    rows, bad = [], 0
    if len(lines) > _MOST_ROWS:
        notes.append(f"{METRICS_NAME} has {len(lines)} lines; the first {_MOST_ROWS} are read")
    for line in lines[:_MOST_ROWS]:
        try:
            row = parse_json(line, nan=True)
        except NotPlainJson:
            row = None
        if _is_row(row):
            rows.append({"phase": "train", **row})
        else:
            bad += bool(line.strip())
    if bad:
        notes.append(f"{METRICS_NAME}: {bad} of {len(lines)} lines cannot be used")
    return rows


def _is_row(row: Any) -> bool:
    """Whether a line of the metrics has the types that curves need; a plain check, because there are many lines."""
    if (
        not isinstance(row, dict)
        or not isinstance(row.get("phase", ""), str)
        or not isinstance(row.get("verdict", ""), str)
    ):
        return False
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return False
    return all(isinstance(row.get(key), int | float | None) for key in _CURVES)


def read_evaluations(folder: Path, notes: list[str]) -> dict[str, StoredResults]:
    """Suite → results. Results whose scores cannot be read are kept without scores, and a note says so."""
    found: dict[str, StoredResults] = {}
    for file in sorted((folder / "eval").glob("*.json")):
        try:
            stored = open_results(file)
        except UserError as error:
            notes.append(str(error).replace(f"{file} ", f"{file.name} ").replace(f"{file}:", f"{file.name}:"))
            continue
        try:
            notes += doubts_about(stored)
        except UserError as error:
            notes.append(f"{file.name}: its means are not checked and have no scores, because {error}")
            stored = stored.without_scores()
        if stored.suite in found:
            notes.append(f"{file.name} is of the suite {stored.suite}, as {found[stored.suite].path.name} is; left out")
            continue
        found[stored.suite] = stored
    return found


def check_identity(
    folder: Path, result: Mapping[str, Any], evaluations: Mapping[str, StoredResults], notes: list[str]
) -> None:
    """Compare the digests that a run's files state with the adapter and the model that lie in its folder."""
    found = {part: _digest(folder / part) for part in ("adapter", "model")}
    for part, digest in found.items():
        stated = result.get(f"{part}_digest")
        if stated and digest and digest != stated:
            notes.append(f"{part}/ is not the one that the run wrote (stated {stated[:12]}, found {digest[:12]})")
        elif stated and not (folder / part).is_dir():
            notes.append(f"{part}/ is missing")
    known = {part: digest or result.get(f"{part}_digest") for part, digest in found.items()}
    if not any(known.values()):
        return  # measurements only
    for stored in evaluations.values():
        said = _measured_another(stored.raw.get("model"), known)
        if said:
            notes.append(f"{stored.path.name} {said}")


def _measured_another(model: Mapping[str, Any] | None, known: Mapping[str, str | None]) -> str:
    """How the model of a result differs from the run's; empty if it does not."""
    if model is None:
        return "does not say which model it measured"
    adapter, base = model.get("adapter"), model.get("base")
    if adapter is None and base is None:
        return "measured a model in memory or from the hub, so it is unknown whether it is the run's"
    if known["model"] is not None and adapter is None and base == known["model"]:
        return ""
    if known["adapter"] is None:
        return "measured another model than the one in model/"
    if adapter is None:
        return "measured a model without the adapter in adapter/"
    if adapter != known["adapter"]:
        return f"measured another adapter than the one in adapter/ ({adapter[:12]}, not {known['adapter'][:12]})"
    return ""


def _entries(value: Any) -> int:
    """Number of values in nested mappings, at least 1."""
    return sum(map(_entries, value.values())) + 1 if isinstance(value, Mapping) else 1


def _digest(folder: Path) -> str | None:
    try:
        return folder_digest(folder) if folder.is_dir() and folder_size(folder) <= _MOST_DIGESTED else None
    except OSError:
        return None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except NotPlainJson as error:
        raise UserError(
            f"{file.name} {error}, so it cannot be read as JSON; the run is damaged, run it again"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{file.name} is not a JSON object; the run is damaged, run it again")
    return found


def _problems(schema: type[BaseModel], values: Mapping[str, Any]) -> dict[str, str]:
    """Key → what is wrong with its value."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        return {str(one["loc"][0]): f"{'.'.join(map(str, one['loc']))} ({one['msg']})" for one in error.errors()}
    return {}


def _listed(problems: Mapping[str, str]) -> str:
    more = len(problems) - _MOST_SHOWN
    return "; ".join(list(problems.values())[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _plain(value: Any) -> Any:
    """A value of YAML as JSON has it: keys are texts, and dates and bytes too."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, bool | float | str) or value is None:
        return value
    if isinstance(value, int):
        return value if -_LARGEST <= value < _LARGEST else hex(value)
    return value.isoformat() if isinstance(value, date) else str(value)
