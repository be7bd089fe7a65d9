"""Run a suite's membership attacks: choose the two sets, score their rows, and compute AUCs and PrivLeak."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict

from llm_forget.data.encode import Encoded, encode_all
from llm_forget.data.examples import Example
from llm_forget.errors import RecipeError, UserError
from llm_forget.evaluation.aggregates.auc import auc
from llm_forget.evaluation.aggregates.privleak import privleak
from llm_forget.evaluation.attacks import Attack, AttackRows
from llm_forget.evaluation.compare import check_same_set, column
from llm_forget.evaluation.passes.asking import is_served
from llm_forget.evaluation.passes.cache import Arrays, remember, rows_digest
from llm_forget.evaluation.passes.gradients import gradient_norms, select_parameters
from llm_forget.evaluation.results import read_results
from llm_forget.evaluation.sets import Loaded, Measured
from llm_forget.evaluation.tokens import Floats, as_floats
from llm_forget.model.head import below_wrapper
from llm_forget.utils.plugins import make_named

# Attacks that need only the token scores, which are computed anyway.
DEFAULT_ATTACKS = ("loss", "zlib_ratio", "min_k", "min_k_plus_plus")
# Prefix of an attack's label among the scores of an example.
PREFIX = "attack_"
_PRIVLEAK = f"{PREFIX}min_k"


@dataclass(frozen=True)
class AttacksConfig:
    """Membership inference."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # The set whose rows were trained on; null for the set called forget.
    members: str | None = None
    # A similar set that was not trained on; null for the set called holdout. The attacks need both sets.
    nonmembers: str | None = None
    # Names, or {name: min_k, k: 0.2}; null for loss, zlib_ratio, min_k and min_k_plus_plus. The reference attack is added if
    # a reference is given. grad_norm runs only if it is named, because it needs one backward pass per row.
    attacks: list[str | dict[str, Any]] | None = None
    # This suite's result file for another model, such as the base model before any training. Needed by the reference attack.
    reference: str | None = None

    def sets_among(self, names: Collection[str]) -> tuple[str, str] | None:
        """Choose the sets of members and non-members; None if the suite lacks the default sets and names no others.

        Raises:
            ValueError: a named set does not exist, or both are the same set.
        """
        missing = sorted({one for one in (self.members, self.nonmembers) if one is not None and one not in names})
        if missing:
            raise ValueError(
                f"attacks names {', '.join(missing)}, but the suite's sets are {', '.join(names)}; use these"
            )
        members, nonmembers = self.members or "forget", self.nonmembers or "holdout"
        if members == nonmembers:
            raise ValueError(f"attacks has {members} as members and as nonmembers; give two different sets")
        return (members, nonmembers) if {members, nonmembers} <= set(names) else None


@dataclass(frozen=True)
class AttackPlan:
    """The attacks to run, planned before any computation.

    Attributes:
        members: the set that was trained on.
        nonmembers: the set that was not trained on.
        attacks: the attacks to compute.
        reference: the result that the reference attack compares with, or None.
    """

    members: str
    nonmembers: str
    attacks: tuple[Attack, ...]
    reference: Mapping[str, Any] | None


def plan_attacks(config: AttacksConfig | None, names: Collection[str]) -> AttackPlan | None:
    """Plan the attacks that a suite asks for; None if it asks for none.

    Raises:
        RecipeError: an attack does not exist, or the reference is missing or cannot be read.
    """
    chosen = None if config is None else config.sets_among(names)
    if config is None or chosen is None:
        return None
    reference = None if config.reference is None else _read_reference(config.reference)
    named: list[str | dict[str, Any]] = list(DEFAULT_ATTACKS if config.attacks is None else config.attacks)
    if reference is not None and not any(_name(entry) == "reference" for entry in named):
        named.append("reference")
    attacks: list[Attack] = make_named(named, "llm_forget.evaluation.attacks", "row_scores")
    if reference is None and any("reference_mean_logps" in attack.needs for attack in attacks):
        raise RecipeError(
            "the reference attack needs another model's scores: set attacks.reference to this suite's result file for that "
            "model, for example runs/base/eval/demo.json"
        )
    return AttackPlan(*chosen, tuple(attacks), reference)


def _name(entry: str | Mapping[str, Any]) -> Any:
    return entry if isinstance(entry, str) else entry.get("name")


def attacks_without(config: AttacksConfig | None, absent: Collection[str]) -> tuple[AttacksConfig | None, list[str]]:
    """Drop the attacks if one of their sets was left out; returns the attacks or None, and warnings."""
    missing = [] if config is None else [one for one in (config.members, config.nonmembers) if one in absent]
    if not missing:
        return config, []
    return None, [f"no membership attacks and no PrivLeak: they need {' and '.join(map(str, missing))}"]


def check_attacks(plan: AttackPlan | None, model: Any) -> None:
    """Check before any computation that the model supports the attacks.

    Raises:
        UserError: an attack needs the gradients of weights that do not exist, are quantised, or are behind a server.
    """
    for attack in () if plan is None else plan.attacks:
        if "gradient_norms" in attack.needs:
            if is_served(model):
                raise UserError(
                    f"attacks, {attack.label}: a server gives no gradients; leave the attack out of attacks.attacks, or set "
                    "engine.name to transformers"
                )
            try:
                select_parameters(below_wrapper(model), _parameters(attack))
            except UserError as error:
                raise UserError(
                    f"attacks, {attack.label}: {error}; or leave the attack out of attacks.attacks"
                ) from None


def _parameters(attack: Attack) -> str:
    return str(getattr(attack, "parameters", "all"))


def _read_reference(path: str) -> dict[str, Any]:
    try:
        return read_results(Path(path))
    except UserError as error:
        raise RecipeError(f"attacks.reference: {error}") from None


@dataclass(frozen=True)
class Attacked:
    """Results of a suite's attacks.

    Attributes:
        members: the set that was trained on.
        nonmembers: the set that was not trained on.
        scores: set → attack's label → (E,) one score per example.
        auc: attack's label → its AUC with interval and settings.
    """

    members: str
    nonmembers: str
    scores: dict[str, dict[str, Floats]]
    auc: dict[str, dict[str, Any]]

    @property
    def section(self) -> dict[str, Any]:
        """The ``attacks`` section of a result."""
        return {"members": self.members, "nonmembers": self.nonmembers, "auc": self.auc}


def measure_attacks(
    plan: AttackPlan,
    asked: Mapping[str, Any],
    measured: Mapping[str, Measured],
    examples: Mapping[str, Sequence[Example]],
    loaded: Loaded,
) -> Attacked:
    """Score the rows of both sets with each attack, and compute how well the scores separate the sets.

    Args:
        plan: the attacks and sets.
        asked: this evaluation's ``settings``, and its ``sets`` with their digests.
        measured: set → its measurements.
        examples: set → its examples.
        loaded: the model, for attacks that need more than these measurements.
    """
    found: dict[str, dict[str, Floats]] = {}
    for name in (plan.members, plan.nonmembers):
        rows = _attack_rows(plan, name, asked, measured[name], examples[name], loaded)
        found[name] = {attack.label: attack.row_scores(rows) for attack in plan.attacks}
    aucs = {
        attack.label: {
            **asdict(auc(found[plan.members][attack.label], found[plan.nonmembers][attack.label])),
            "bounds": [0.0, 1.0],
            "forgotten": "oracle",
            "settings": dict(vars(attack)),
        }
        for attack in plan.attacks
    }
    return Attacked(plan.members, plan.nonmembers, found, aucs)


def _attack_rows(
    plan: AttackPlan,
    name: str,
    asked: Mapping[str, Any],
    measured: Measured,
    examples: Sequence[Example],
    loaded: Loaded,
) -> AttackRows:
    reference = None
    if plan.reference is not None:
        check_same_set(asked, plan.reference, name, "reference")
        # the loss attack's score is the mean log-prob; results without this attack still have its exponential, the probability
        logps = np.array(column(plan.reference["sets"][name], f"{PREFIX}loss"))
        with np.errstate(divide="ignore"):
            logs = np.log(column(plan.reference["sets"][name], "probability"))
        reference = np.where(np.isnan(logps), logs, logps)
    gradients = None
    wanted = [attack for attack in plan.attacks if "gradient_norms" in attack.needs]
    if wanted:
        rows, report = encode_all(loaded.tokenizer, examples, loaded.encoding, role=name)
        norms = _gradients(rows, _parameters(wanted[0]), loaded)
        # a long example that was cut into parts has the mean of their norms
        gradients = np.bincount(report.owners, weights=norms) / np.bincount(report.owners)
    return AttackRows(measured.scores.answer, measured.scores.references, reference, gradients)


def _gradients(rows: Sequence[Encoded], parameters: str, loaded: Loaded) -> Floats:
    def compute() -> Arrays:
        with loaded.meter.bar("gradients taken", len(rows)) as progress:
            norms = gradient_norms(
                loaded.model,
                rows,
                pad_token_id=loaded.pad_token_id,
                parameters=parameters,
                progress=progress,
                accelerator=loaded.accelerator,
            )
        return {"norms": norms}

    parts = {"rows": rows_digest(rows), "parameters": parameters}
    return as_floats(remember(loaded.cache, loaded.accelerator, "gradients", parts, compute)["norms"])


def measure_privleak(
    attacked: Attacked | None, asked: Mapping[str, Any], oracle: Mapping[str, Any] | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """Compute PrivLeak from the Min-K scores of both models, or explain why it is missing.

    Args:
        attacked: results of the attacks on the model, or None.
        asked: this evaluation's ``settings``, and its ``sets`` with their digests.
        oracle: this suite's result for the oracle, or None.

    Returns:
        The result or None, and warnings.
    """
    if attacked is None or "min_k" not in attacked.auc:
        return None, []
    if oracle is None:
        return None, [
            "PrivLeak was not computed: it needs the oracle's results (assuming an AUC of ½ would be a guess)"
        ]
    names = (attacked.members, attacked.nonmembers)
    for name in names:
        if name not in oracle["sets"] or not np.isfinite(column(oracle["sets"][name], _PRIVLEAK)).any():
            return None, [
                f"PrivLeak was not computed: the oracle's results have no Min-K scores of {name}; evaluate the oracle again"
            ]
        check_same_set(asked, oracle, name)
    pairs = [[attacked.scores[name]["min_k"], as_floats(column(oracle["sets"][name], _PRIVLEAK))] for name in names]
    found = privleak(*pairs)
    return {**asdict(found), "seed": None}, [f"PrivLeak: {found.note}"] if found.note else []
