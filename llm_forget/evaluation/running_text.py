"""Perplexity on running text, and the KL to the target on the same windows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from llm_forget.data.encode import Encoded, EncodingConfig, encode
from llm_forget.data.examples import Example, example_id
from llm_forget.data.row import as_text, read_bytes
from llm_forget.errors import DataError
from llm_forget.evaluation.aggregates.perplexity import perplexity, sliding_windows
from llm_forget.evaluation.aggregates.text_kl import text_kl
from llm_forget.evaluation.passes.asking import check_readable, longest_row
from llm_forget.evaluation.sets import Loaded, score_all, target_kl
from llm_forget.utils.shipped import shipped


@dataclass(frozen=True)
class PerplexityConfig:
    """Perplexity on running text."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    # A text file.
    path: str = "eval/capability/neutral.txt"
    window: int = 512
    # Tokens that each window scores; its other tokens are context.
    stride: int = 256
    # Only the first tokens, up to this number; null for all.
    max_tokens: int | None = None
    # Also measure the KL to the model before unlearning at each token: one forward pass of each model. auto: if that model is
    # available.
    kl: bool | Literal["auto"] = False


def read_text(path: str) -> str:
    """Read a text file, or a file of the package if no such file exists.

    Raises:
        DataError: the file does not exist.
    """
    file = Path(path)
    file = file if file.is_file() else shipped(path)
    if not file.is_file():
        raise DataError(f"{path}: no such file; give a text file for perplexity, or set `perplexity: null`")
    return as_text(read_bytes(file, path), path)


def _windows(config: PerplexityConfig, text: str, loaded: Loaded) -> list[Encoded]:
    whole = EncodingConfig(max_length=1 << 30, add_end_token=False)
    ids = encode(loaded.tokenizer, Example(example_id("", text), "", text), whole).input_ids
    bare = len(loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    begin = ids[: len(ids) - bare]
    return sliding_windows(
        ids[len(begin) :][: config.max_tokens], window=config.window, stride=config.stride, begin=begin
    )


def measure_text(config: PerplexityConfig, text: str, loaded: Loaded) -> dict[str, Any]:
    """Score a text window by window.

    Args:
        config: the window sizes, and whether to measure the KL to the target.
        text: the text.
        loaded: the model.

    Returns:
        ``perplexity``, and ``kl_to_target`` if it is requested and a target is available.
    """
    limit = longest_row(loaded.model)
    if limit is not None and config.window > limit:
        raise DataError(
            f"perplexity.window is {config.window}, and the model knows {limit} positions: set window to {limit} or less and "
            "stride below it, or set perplexity: null"
        )
    windows = _windows(config, text, loaded)
    check_readable(loaded.model, windows, config.path)
    scores = score_all(windows, loaded)
    # with the windows' log-probs, two models are compared window by window
    parts = {"window_mean_logps": scores.mean_logps(), "window_tokens": scores.lengths}
    found = {"perplexity": {**asdict(perplexity(scores)), "window": config.window, "stride": config.stride, **parts}}
    if config.kl and loaded.has_target:
        found["kl_to_target"] = _text_kl(windows, loaded)
    return found


def _text_kl(windows: list[Encoded], loaded: Loaded) -> dict[str, Any]:
    offsets = np.cumsum([0, *(len(window.input_ids) - window.prompt_length for window in windows)])
    return asdict(text_kl(target_kl(windows, loaded), offsets))
