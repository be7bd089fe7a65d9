"""Load a run's adapter into a running vLLM, ask it control questions, and undo it if they are answered by another model.

vLLM offers ``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter`` when it runs with ``--enable-lora`` and the environment
variable ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``. The server reads the adapter's folder itself, so it must see the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_forget.adapters.doctor import diagnose
from llm_forget.adapters.lora import load_adapter
from llm_forget.auditing.attack import Access
from llm_forget.auditing.endpoint import ServedSubject
from llm_forget.auditing.forms import Form
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.config import ModelConfig
from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import Example, Message
from llm_forget.errors import UserError
from llm_forget.evaluation.tokens import Floats, TokenScores
from llm_forget.model.adapted import attach_adapter
from llm_forget.model.load import load_model
from llm_forget.runs import load_run
from llm_forget.train.general import general_questions
from llm_forget.utils.build import build
from llm_forget.utils.endpoint import Endpoint

QUESTIONS = 5
_POOL = 40  # general questions of which those are taken that tell the adapter from its base best
_LONGEST = 16  # tokens of an answer
TOLERANCE = 0.1  # nats per token, mean of an answer: a server in bf16 stays well below
_FORM = Form("served", "as served", adapter=True)


@dataclass(frozen=True)
class Controls:
    """Questions with the answers of the adapted model, and how likely they are.

    Attributes:
        examples: the questions.
        answers: the greedy answers of the base with the adapter.
        adapted: (Q,) their mean log-probs per token with the adapter, in nats.
        base: (Q,) the same without it.
    """

    examples: Sequence[Example]
    answers: Sequence[str]
    adapted: Floats
    base: Floats

    @property
    def effect(self) -> float:
        """How far the adapter moves these answers at most, in nats per token."""
        return float(np.abs(self.adapted - self.base).max())


@dataclass(frozen=True)
class Deployed:
    """The outcome.

    Attributes:
        ok: whether the served adapter answers as the run's adapter does.
        lines: what was done and found, in order.
    """

    ok: bool
    lines: tuple[str, ...]


def deploy(
    run: Path,
    server: str,
    name: str,
    *,
    base: Path | None = None,
    key_variable: str = "OPENAI_API_KEY",
    say: Callable[[str], None] = lambda _: None,
) -> Deployed:
    """Load the adapter of a run into a server, and keep it only if five control questions are answered alike.

    The questions are general ones of the package: no text of the data is sent.

    Args:
        run: the run folder.
        server: the server's address.
        name: the name under which the adapter is served; an adapter that has it is replaced.
        base: folder of the base, if it has moved since the run.
        key_variable: environment variable with the server's key.
        say: gets lines about the progress.

    Raises:
        UserError: the run has no adapter, vLLM would not load it, or the server cannot be used.
    """
    found = load_run(run)
    adapter = (run / "adapter").resolve()
    if found.kind != "unlearn" or not adapter.is_dir():
        raise UserError(f"{run} has no adapter; give the folder of an unlearning run that trained one")
    values = {**(found.recipe.get("model") or {}), **({"name": str(base)} if base else {})}
    config = build(ModelConfig, values, f"{run}, model")
    encoding = build(EncodingConfig, found.recipe.get("encoding") or {}, f"{run}, encoding")
    endpoint = Endpoint(server, name, key_variable, options=("--server", "--name"))
    before = _served(endpoint)
    _check(config.name, adapter)
    say(f"asking {_POOL} general questions here, with the adapter and without it")
    model, tokenizer = load_model(config)
    controls = controls_of(attach_adapter(model, load_adapter(adapter)), tokenizer, encoding)
    lines = [f"before: {name} is {'served from ' + before[name] if name in before else 'not served'}"]
    _load(endpoint, name, adapter, replace=name in before)
    lines.append(f"loaded {adapter} as {name}")
    try:
        ok, text = compare(controls, ServedSubject(endpoint, tokenizer, encoding, _FORM))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        ok, text = False, f"the control questions got no answer: {error}"
    lines.append(text)
    if not ok:
        lines.append(_undone(endpoint, name, before.get(name)))
    return Deployed(ok, tuple(lines))


def controls_of(adapted: Any, tokenizer: Any, encoding: EncodingConfig) -> Controls:
    """The general questions on which an adapter differs most from its base.

    Args:
        adapted: the ``PeftModel``.
        tokenizer: its tokenizer.
        encoding: the run's encoding.
    """
    pool = [Example(f"control-{place}", (Message("user", text),), "-") for place, text in
            enumerate(general_questions()[:_POOL])]  # fmt: skip
    subject = LoadedSubject(adapted, tokenizer, encoding, _FORM)
    said = subject.ask(pool, max_new_tokens=_LONGEST)
    asked = [(one, answer) for one, answer in zip(pool, said, strict=True) if answer.strip()]
    if len(asked) < QUESTIONS:
        raise UserError("the model answers general questions with nothing, so it cannot be told from another one")
    examples, answers = [one for one, _ in asked], [answer for _, answer in asked]
    own = subject.score(examples, answers).mean_logps()
    with adapted.disable_adapter():
        bare = LoadedSubject(adapted, tokenizer, encoding, _FORM).score(examples, answers).mean_logps()
    best = np.argsort(-np.abs(own - bare), kind="stable")[:QUESTIONS]
    return Controls([examples[one] for one in best], [answers[one] for one in best], own[best], bare[best])


def compare(controls: Controls, served: ServedSubject) -> tuple[bool, str]:
    """Whether a server answers the control questions as the adapted model does, and a sentence about it."""
    if Access.LOGPS not in served.access:
        said = served.ask(controls.examples, max_new_tokens=_LONGEST)
        alike = sum(one.strip() == other.strip() for one, other in zip(said, controls.answers, strict=True))
        return alike == len(
            said
        ), f"{alike} of {len(said)} control questions are answered alike (the server gives no log-probs)"
    # one request at a time: vLLM 0.32 on a CPU ends when log-probs of two prompts with an adapter fall into one batch
    scores: list[TokenScores] = [
        served.score([one], [answer]) for one, answer in zip(controls.examples, controls.answers, strict=True)
    ]
    logps = np.concatenate([one.mean_logps() for one in scores])
    gaps = np.abs(logps - controls.adapted)
    nearer = np.abs(logps - controls.base)
    alike = int((gaps <= TOLERANCE).sum())
    ok = alike == len(gaps) and (controls.effect <= TOLERANCE or float(gaps.sum()) < float(nearer.sum()))
    weak = "; these questions do not tell it from the base" if controls.effect <= TOLERANCE else ""
    return ok, (
        f"{alike} of {len(gaps)} control questions are answered alike: off by {float(gaps.max()):.4f} nats per token at most, "
        f"where the adapter itself moves them by {controls.effect:.3f}{weak}"
    )


def _check(base: str, adapter: Path) -> None:
    """Refuse what vLLM would refuse or apply wrongly; a base that is in no folder cannot be checked."""
    if not Path(base).is_dir():
        return
    found = diagnose(base, adapter, max_rank=512)
    wrong = [one for one in found.verdicts if one.server == "vLLM" and one.status in ("refuses", "wrong")]
    if found.base == "different":
        raise UserError("the adapter was trained on another base; llm-forget doctor says more")
    if wrong:
        raise UserError(f"vLLM: {'; '.join(wrong[0].reasons)}; llm-forget export makes an adapter that it loads")


def _served(endpoint: Endpoint) -> dict[str, str]:
    """Name → folder of the adapters that are served."""
    return {name: str(one.get("root") or "") for name, one in endpoint.models().items() if one.get("parent")}


def _load(endpoint: Endpoint, name: str, folder: Path | str, *, replace: bool) -> None:
    body = {"lora_name": name, "lora_path": str(folder)}
    try:
        endpoint.send("load_lora_adapter", json.dumps({**body, **({"load_inplace": True} if replace else {})}).encode())
    except UserError as error:
        if not replace:
            raise UserError(f"{error}; vLLM needs --enable-lora, a --max-lora-rank of the adapter's rank or more, and "
                            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1") from None  # fmt: skip
        _unload(endpoint, name)  # servers from before load_inplace
        endpoint.send("load_lora_adapter", json.dumps(body).encode())


def _unload(endpoint: Endpoint, name: str) -> None:
    endpoint.send("unload_lora_adapter", json.dumps({"lora_name": name}).encode())


def _undone(endpoint: Endpoint, name: str, before: str | None) -> str:
    """Serve what was served before. Returns what was done, also if that failed."""
    try:
        if before:
            _load(endpoint, name, before, replace=True)
            return f"rolled back: {name} is served from {before} again"
        _unload(endpoint, name)
        return f"rolled back: {name} is not served any more"
    except UserError as error:
        return f"NOT ROLLED BACK: {error}; unload {name} by hand"
