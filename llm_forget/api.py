"""The Python API: unlearn and evaluate a loaded model with rows in memory. Recipes run the same code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from llm_forget.config import TrainConfig, UnlearnRecipe
from llm_forget.data.examples import DataSource, Example, check_rows, read_examples
from llm_forget.data.readers import rows_in_memory
from llm_forget.errors import DataError, RecipeError
from llm_forget.train.run_folder import RunRecord
from llm_forget.utils.build import build
from llm_forget.utils.extras import require_extra
from llm_forget.utils.shipped import shipped

if TYPE_CHECKING:
    import pandas as pd

# The path of a file, or rows: a `datasets.Dataset` or a list of mappings.
Rows = str | Path | Iterable[Mapping[str, Any]]

_IN_MEMORY = "(in memory)"
_TRAIN = {item.name for item in fields(TrainConfig)}


@dataclass(frozen=True)
class Unlearned:
    """The result of ``unlearn``.

    Attributes:
        model: the model with its adapter enabled, in eval mode; ``model.disable_adapter()`` gives the model before.
        record: the same content as a run's ``result.json``.
        metrics: numbers only, one row per step and per check.
        output_dir: the run folder; None if nothing was written.
    """

    model: Any = field(repr=False)
    record: RunRecord
    metrics: list[dict[str, Any]] = field(repr=False)
    output_dir: Path | None = None

    @property
    def reason(self) -> str:
        """Why the run ended and which state was kept."""
        return self.record.reason

    def frame(self) -> pd.DataFrame:
        """A table with one row per step and per check (needs pandas)."""
        return _frame(self.metrics)

    def __repr__(self) -> str:
        record = self.record
        lines = [
            f"{record.method}: {record.steps} steps in {record.seconds:.1f} s",
            f"forget probability {record.before.forget:.3f} → {record.after.forget:.3f}"
            + ("" if record.forget_target is None else f" (target {record.forget_target:.3f})"),
        ]
        if record.before.retain is not None and record.after.retain is not None:
            lines.append(
                f"retain probability {record.before.retain:.3f} → {record.after.retain:.3f} "
                f"(floor {record.utility_floor or 0:.3f})"
            )
        lines.append(record.reason)
        return "\n".join(lines + ([f"written to {self.output_dir}"] if self.output_dir else []))


@dataclass(frozen=True)
class Scores:
    """The result of ``evaluate``.

    Attributes:
        results: the content of ``eval/<suite>.json`` (see ``evaluation/schema.py``), with the scores by example id.
    """

    results: dict[str, Any] = field(repr=False)

    @property
    def verdict(self) -> list[str]:
        """The meaning of the numbers in plain words. A full judgement needs the target and the oracle."""
        return list(self.results["verdict"])

    def frame(self) -> pd.DataFrame:
        """A table with one row per set and metric: value, interval, counts, and each control's value (needs pandas)."""
        return _frame(list(self._rows()))

    def examples(self, name: str) -> pd.DataFrame:
        """A table with the scores of a set's examples, one row per id (needs pandas)."""
        found = self.results["sets"].get(name)
        if found is None:
            raise DataError(f"the set {name!r} was not measured; give one of {', '.join(self.results['sets'])}")
        return _frame([{"id": one, **scores} for one, scores in found["examples"].items()]).set_index("id")

    def save(self, path: str | Path) -> None:
        """Write a JSON file, and a Parquet file with the scores of single examples, as ``llm-forget evaluate`` does."""
        from llm_forget.evaluation.results import write_results

        write_results(self.results, Path(path))

    def _rows(self) -> Iterable[dict[str, Any]]:
        controls = self.results.get("controls") or {}
        for name, found in self.results["sets"].items():
            for label, entry in found["metrics"].items():
                row = {"set": name, "metric": label}
                row |= {key: entry[key] for key in ("value", "low", "high", "n", "n_nan", "forgotten")}
                for role, control in controls.items():
                    other = control["sets"].get(name, {}).get("metrics", {}).get(label, {})
                    row[role] = other.get("value")
                yield row

    def __repr__(self) -> str:
        lines = [
            f"{self.results['suite']}: " + ", ".join(f"{k} (n = {v['n']})" for k, v in self.results["sets"].items())
        ]
        for row in self._rows():
            value = "not scored" if row["value"] is None else f"{row['value']:.3f}"
            span = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
            lines.append(f"  {row['set']} {row['metric']}: {value}{span}")
        return "\n".join([*lines, "frame() returns a table; verdict explains the numbers"])


def unlearn(
    model: Any,
    tokenizer: Any,
    *,
    forget: Rows,
    retain: Rows | None = None,
    validation: Rows | None = None,
    holdout: Rows | None = None,
    method: str | Mapping[str, Any] | None = None,
    base: Any = "auto",
    output_dir: str | Path | None = None,
    retain_term: str | Mapping[str, Any] | None = "default",
    console: Any = None,
    **settings: Any,
) -> Unlearned:
    """Unlearn rows from a loaded model, in the same way as a recipe.

    The model is changed in place, as in PEFT: it has the adapter afterwards. The adapters of a ``PeftModel`` are first merged
    into its weights (in fp32), like a recipe's ``model.adapter``. Then a new adapter is trained.

    Args:
        model: a ``PreTrainedModel`` or ``PeftModel`` in fp32, bf16 or quantised. It stays on its device.
        tokenizer: its tokenizer.
        forget: rows to forget: a ``datasets.Dataset``, a list of mappings, or a file, with the same columns as data files.
        retain: rows to keep, in the same forms.
        validation: rows on which the utility floor is measured.
        holdout: rows that were never trained on, for the forget target.
        method: its name, or ``{"name": "npo", "beta": 0.1}``. None takes the default: ``base_teacher`` or, without a base,
            ``npo``, with row targets and virtual neighbours.
        base: the model before it learned the forget rows: a loaded model, a folder or a hub id. "auto" takes a ``PeftModel``
            without its adapters; None for none.
        output_dir: the run folder to write. During training, checkpoints are written next to it. None writes nothing.
        retain_term: a recipe's ``retain``: a name, or ``{"name": "kl", "weight": 2.0}``; None for no retain term.
            ``{"weight": 4.0}`` sets only the weight of the method's own term.
        console: a ``rich.console.Console`` for progress; standard error by default.
        settings: any other field of a recipe (``adapter={"rank": 8}``, ``stop={...}``, ``seed=1``). The fields of ``train``
            can also be given directly: ``epochs=5``, ``learning_rate=1e-3``.

    Raises:
        UserError: settings, data or model cannot be used; the message lists all mistakes in the settings.
    """
    from llm_forget.train.build import NOWHERE
    from llm_forget.train.run_folder import writing_run

    given = {"forget": forget, "retain": retain, "validation": validation, "holdout": holdout}
    sets = {name: rows for name, rows in given.items() if rows is not None}
    _check_model(model)
    values = {
        "model": _model_section(model),
        "data": {name: {"path": _path(rows)} for name, rows in sets.items()},
        "method": {"name": method} if isinstance(method, str) else dict(method or {}),
        "retain": dict(retain_term) if isinstance(retain_term, Mapping) else {"name": retain_term},
        "output_dir": NOWHERE if output_dir is None else str(output_dir),
        "base": base if base is None or isinstance(base, str) else _IN_MEMORY,
        **_with_train(settings),
    }
    if retain is None and retain_term == "default" and method is not None:
        values["retain"] = {"name": None}
    recipe = build(UnlearnRecipe, values, "unlearn()")
    with writing_run(recipe.output_dir, resumes=recipe.resume):
        return _unlearn(model, tokenizer, recipe, sets, console, base)


def _unlearn(
    model: Any, tokenizer: Any, recipe: UnlearnRecipe, sets: Mapping[str, Rows], console: Any, base: Any
) -> Unlearned:
    from llm_forget.model.blocks import cast_adapter_inputs
    from llm_forget.model.load import with_padding
    from llm_forget.train.build import make_parts
    from llm_forget.train.default import hidden_size, scaled, settled
    from llm_forget.train.prepare import prepare
    from llm_forget.train.unlearn import run_on

    open_base = _open_base(model, base, recipe)
    given, recipe = recipe, settled(recipe, base=open_base is not None)
    parts = make_parts(recipe)
    tokenizer = with_padding(tokenizer)
    prepared = prepare(
        recipe.data,
        recipe.encoding,
        tokenizer,
        rows=recipe.stop.rows,
        seed=recipe.seed,
        data_dir=recipe.data_dir,
        in_memory={name: _examples(name, rows) for name, rows in sets.items()},
    )

    recipe = scaled(recipe, given, rows=len(prepared.forget), width=hidden_size(model.config))

    def load() -> Any:
        return _prepared(model, recipe)

    done = run_on(recipe, parts, prepared, tokenizer, load, console, open_base=open_base, lenient=not given.method)
    done.model.eval()
    cast_adapter_inputs(done.model, True)  # the caller runs it without the training's autocast
    return Unlearned(done.model, done.record, done.metrics, Path(recipe.output_dir) if recipe.output_dir else None)


def evaluate(
    model: Any,
    tokenizer: Any,
    *,
    forget: Rows,
    retain: Rows | None = None,
    holdout: Rows | None = None,
    sets: Mapping[str, Rows] | None = None,
    target: Scores | Mapping[str, Any] | str | Path | None = None,
    oracle: Scores | Mapping[str, Any] | str | Path | None = None,
    sham: Scores | Mapping[str, Any] | str | Path | None = None,
    keep_text: bool = False,
    cache: str | Path | None = None,
    console: Any = None,
    **settings: Any,
) -> Scores:
    """Evaluate a loaded model, in the same way as ``llm-forget evaluate --suite custom``.

    Nothing is written without ``cache`` or ``Scores.save``. Perplexity and the capability test are off by default; enable them
    with ``perplexity={}`` and ``capability={}``. Like ROUGE, they need ``pip install llm-forget[eval]``.

    Args:
        model: a causal language model, with its adapter enabled or disabled. It stays on its device.
        tokenizer: its tokenizer.
        forget: rows that should be forgotten: a ``datasets.Dataset``, a list of mappings, or a file.
        retain: rows that should be kept.
        holdout: rows similar to the forget rows that were never trained on, for the membership attacks.
        sets: further sets by name.
        target: this function's result for the model before unlearning, or its file, for comparison.
        oracle: the result for a model that never saw the forget rows; needed for forget quality.
        sham: the result for the same recipe run on other rows.
        keep_text: keep the model's answers; they may contain the forgotten data.
        cache: a folder for scores, reused when the same model is evaluated again; None for no cache.
        console: a ``rich.console.Console`` for progress; silent by default.
        settings: any other field of a suite: ``metrics=["probability"]``, ``generation={"max_new_tokens": 32}``.

    Raises:
        UserError: settings or data cannot be used, or a control was measured on other rows.
    """
    from llm_forget.evaluation.evaluate import make_accelerator
    from llm_forget.evaluation.run_suite import run_suite
    from llm_forget.evaluation.suite import load_suite

    given = {"forget": forget, "retain": retain, "holdout": holdout, **(sets or {})}
    rows = {name: one for name, one in given.items() if one is not None}
    usual = yaml.safe_load(shipped("eval/suites/custom.yaml").read_text(encoding="utf-8"))["sets"]
    entries = {name: {**usual.get(name, {}), "data": {"path": _path(one)}} for name, one in rows.items()}
    changes = {"perplexity": None, "capability": None, **settings, "sets": entries}
    suite = load_suite("custom", {key: yaml.safe_dump(value) for key, value in changes.items()})
    examples = {name: _examples(name, one) for name, one in rows.items()}
    given_controls = {"target": target, "oracle": oracle, "sham": sham}
    controls = {role: _results(role, one) for role, one in given_controls.items() if one is not None}
    accelerator = make_accelerator()
    main = accelerator is None or accelerator.is_main_process
    found = run_suite(
        suite,
        model,
        tokenizer,
        controls=controls,
        accelerator=accelerator,
        console=console if main else None,
        keep_text=keep_text,
        cache=None if cache is None else Path(cache),
        in_memory=examples,
    )
    return Scores(found)


def _with_train(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Move the fields of ``train`` that were given directly into the ``train`` section."""
    direct = {key: value for key, value in settings.items() if key in _TRAIN}
    rest = {key: value for key, value in settings.items() if key not in _TRAIN}
    for key in ("model", "data"):
        if key in rest:
            raise RecipeError(
                f"{key} is not a keyword here: give the loaded model as the first argument, and data as forget=..., retain=..."
            )
    if not direct:
        return rest
    train = rest.get("train", {})
    twice = sorted(direct.keys() & (train.keys() if isinstance(train, Mapping) else set()))
    if twice:
        raise RecipeError(f"{', '.join(twice)} was given directly and in train; give it once")
    return {**rest, "train": {**train, **direct} if isinstance(train, Mapping) else train}


def _open_base(model: Any, base: Any, recipe: UnlearnRecipe) -> Any:
    """How to open the model before it learned the forget rows, as a context; None if there is none at hand."""
    from llm_forget.train.origin import named_base, without_adapters

    if base is None or (isinstance(base, str) and base != "auto"):
        return named_base(recipe.base, recipe.model)
    if isinstance(base, str):
        return without_adapters(model) if hasattr(model, "merge_and_unload") else None
    _check_model(base)
    return lambda: nullcontext(base)


def _path(rows: Rows) -> str:
    return str(rows) if isinstance(rows, str | Path) else _IN_MEMORY


def _examples(name: str, rows: Rows) -> list[Example]:
    if isinstance(rows, str | Path):
        return read_examples(DataSource(str(rows)))
    if isinstance(rows, Mapping):
        raise DataError(
            f"{name} is a {type(rows).__name__} with {len(rows)} keys; give rows: one split of a DatasetDict, or a list of "
            '{"question": ..., "answer": ...}'
        )
    return check_rows(rows_in_memory(rows, name), DataSource(name))


def _results(role: str, given: Scores | Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    from llm_forget.evaluation.results import read_results

    if isinstance(given, Scores):
        return given.results
    return given if isinstance(given, Mapping) else read_results(Path(given))


def _model_section(model: Any) -> dict[str, Any]:
    """The ``model`` section of the recipe that is recorded. The model may differ from the checkpoint that it names."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = str(getattr(inner.config, "_name_or_path", "") or "")
    merged = " with its adapters merged" if inner is not model else ""
    held = {"is_loaded_in_4bit": "nf4", "is_loaded_in_8bit": "int8"}
    quantised = next((word for flag, word in held.items() if getattr(inner, flag, False)), None)
    dtype = "bfloat16" if next(inner.parameters()).dtype == torch.bfloat16 else "float32"
    return {"name": f"{name or 'a model'} {_IN_MEMORY}{merged}", "dtype": dtype, "quantization": quantised}


def _check_model(model: Any) -> None:
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise RecipeError(
            f"the model is a {type(model).__name__}; give a loaded model, for example "
            "AutoModelForCausalLM.from_pretrained(...), or run a recipe to load a model by name"
        )
    if any(value.dtype == torch.float16 for value in model.parameters()):
        raise RecipeError(
            "the model is in float16, which overflows in training; load it with dtype=torch.bfloat16 or float32"
        )


def _prepared(model: Any, recipe: UnlearnRecipe) -> Any:
    """Prepare the model as ``load_model`` does: merge adapters, and convert trainable weights to fp32."""
    from llm_forget.model.load import keep_gradients_through, refuse_quantised

    if hasattr(model, "merge_and_unload"):
        if recipe.model.quantization is not None:
            refuse_quantised(trains=False, merges=True)
        dtype = next(model.parameters()).dtype
        model = model.float().merge_and_unload().to(dtype)
    elif getattr(model, "peft_config", None):
        raise RecipeError(
            "the model has adapters but is not a PeftModel; give the PeftModel, or unload the adapters first"
        )
    if recipe.adapter is None:
        if recipe.model.quantization is not None:
            refuse_quantised(trains=True, merges=False)
        model = model.float().requires_grad_(True)
    keep_gradients_through(model)
    return model


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    require_extra("pandas", "a frame", "report")
    import pandas as pd

    return pd.DataFrame(rows)
