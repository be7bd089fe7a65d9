"""Generate answers to prompts, greedy or sampled, for the metrics that read text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llm_forget.data.template import turn_end
from llm_forget.errors import DataError
from llm_forget.model.batching import evaluating, length_batches, share_of, sum_over_processes
from llm_forget.model.head import below_wrapper
from llm_forget.model.limits import padding_id, position_limit

_STAGE = 16  # new tokens after which ended answers leave their batch

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    batch_size: int,
    begun: Sequence[tuple[int, ...]] | None = None,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> list[str]:
    """Continue each prompt greedily until an end token or ``max_new_tokens``.

    Padding is on the left and masked by position, so a tokenizer with ``pad == eos`` works. Batches depend only on the
    and beginnings' lengths, so the same ones give the same batches and the same answers, even in bf16. With another
    ``batch_size``, a bf16 model can choose another token if two logits are almost equal, and the rest of the answer changes.

    Args:
        model: a causal language model that can generate; each process holds all of it.
        tokenizer: its tokenizer; special tokens are removed from the answers.
        prompts: token ids, at least one each (``data.encode.encode_prompt``).
        max_new_tokens: longest answer in tokens, including the end token.
        batch_size: prompts per batch.
        begun: for each prompt, tokens with which its greedy answer is known to begin, maybe none (``agreed``). They are not
            generated again, and an answer that is known up to an end token costs nothing.
        progress: called after each batch with its number of prompts.
        accelerator: an ``accelerate.Accelerator``; its processes share the prompts, and each gets all answers.

    Returns:
        The answers in the order of ``prompts``, without surrounding white space.

    Raises:
        DataError: a prompt is empty, or a size is below 1.
    """
    found = _answers(model, tokenizer, prompts, None, max_new_tokens, batch_size, progress, accelerator, begun)
    return [_text(tokenizer, row[row > 0] - 1) for row in found]


def agreed(answer: Sequence[int], hits: Sequence[bool]) -> tuple[int, ...]:
    """The tokens with which a greedy answer begins, from a forward pass over a given answer.

    Args:
        answer: tokens of the given answer.
        hits: for each, whether it is the arg-max after the tokens before it.

    Returns:
        The given answer up to the first token that is not the arg-max: greedy generation chooses the same tokens.
    """
    miss = next((place for place, hit in enumerate(hits) if not hit), len(hits))
    return tuple(answer[:miss])


def known_answer(tokenizer: Any, begun: Sequence[int], ends: Sequence[int], most: int) -> str | None:
    """The text of a greedy answer that is known to its end, or to its longest length; None if it is not.

    Args:
        tokenizer: special tokens are removed from the text.
        begun: the tokens with which the answer is known to begin (``agreed``).
        ends: the tokens that end an answer.
        most: the longest answer in tokens, including the end token.
    """
    own = begun[:most]
    known = _before_end(own, ends)
    if len(known) == len(own) < most:
        return None
    return _text(tokenizer, np.asarray(known, dtype=np.int64))


def sample_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    samples: int,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> list[list[str]]:
    """Sample several answers to each prompt, each token from ``softmax(logits / temperature)`` over the whole vocabulary.

    A token is drawn by inverting the cumulative distribution at one uniform random number. Each sample has its own random
    generator, seeded with ``seed``, the prompt and the sample's index. So the random numbers do not depend on other prompts,
    their order, the batch size or the number of processes.

    Args:
        model: a causal language model that can generate; each process holds all of it.
        tokenizer: its tokenizer; special tokens are removed from the answers.
        prompts: (E) token ids, at least one each.
        samples: answers per prompt.
        temperature: above 0; values below 1 make likely tokens more likely.
        seed: seed of the samples.
        max_new_tokens: longest answer in tokens, including the end token.
        batch_size: answers per batch.
        progress: called after each batch with its number of answers.
        accelerator: an ``accelerate.Accelerator``; its processes share the answers, and each gets all of them.

    Returns:
        (E) lists of ``samples`` answers, without surrounding white space.

    Raises:
        DataError: a prompt is empty, a size is below 1, or the temperature is 0 or less.
    """
    if samples < 1 or not temperature > 0:
        raise DataError(
            f"samples is {samples} and temperature {temperature}; samples must be 1 or more and temperature above 0"
        )
    uniforms = np.array(
        [row for name in _prompt_names(prompts) for row in _uniforms(name, samples, seed, max_new_tokens)]
    ).reshape(-1, max(max_new_tokens, 1))
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    drawing = (uniforms, temperature)
    found = _answers(model, tokenizer, repeated, drawing, max_new_tokens, batch_size, progress, accelerator)
    said = [_text(tokenizer, row[row > 0] - 1) for row in found]
    return [said[start : start + samples] for start in range(0, len(said), samples)]


def _prompt_names(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """For each prompt, a number derived from its tokens, and how many equal prompts came before it."""
    seen: dict[int, int] = {}
    names = []
    for prompt in prompts:
        digest = hashlib.sha256(" ".join(map(str, prompt)).encode()).digest()
        name = int.from_bytes(digest[:16], "big")
        names.append((name, seen.get(name, 0)))
        seen[name] = seen.get(name, 0) + 1
    return names


def _uniforms(name: tuple[int, int], samples: int, seed: int, length: int) -> Floats:
    """(samples, length) random numbers in [0, 1), each row from its own generator."""
    return np.stack([np.random.default_rng([seed, *name, sample]).random(max(length, 1)) for sample in range(samples)])


def _answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    drawing: tuple[Floats, float] | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None,
    accelerator: Any,
    begun: Sequence[tuple[int, ...]] | None = None,
) -> Ints:
    """(P, max_new_tokens) the new token ids of each prompt plus 1; 0 means no token."""
    if max_new_tokens < 1 or batch_size < 1:
        raise DataError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}; both must be 1 or more")
    empty = sum(not prompt for prompt in prompts)
    if empty:
        raise DataError(f"{empty} of {len(prompts)} prompts are empty; give prompts of at least one token")
    inner = below_wrapper(model)  # DDP has no generate
    ends = end_token_ids(inner, tokenizer)
    # Token id + 1, so that 0 means no token and the arrays can be summed over processes.
    found = np.zeros((len(prompts), max_new_tokens), dtype=np.int64)
    limit = position_limit(inner)
    room = _room(prompts, limit, max_new_tokens)
    begun = [own[:most] for own, most in zip(begun or [()] * len(prompts), room, strict=True)]
    known = [_before_end(own, ends) for own in begun]
    processes, process = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    for index, own in enumerate(known if process == 0 else ()):
        found[index, : len(own)] = np.asarray(own, dtype=np.int64) + 1
    # an answer whose end is known needs no generation
    rest = [index for index, own in enumerate(known) if len(own) == len(begun[index]) < room[index]]
    if progress is not None and len(rest) < len(prompts):
        progress((len(prompts) - len(rest)) // processes)
    asked = {index: (*prompts[index], *known[index]) for index in rest}
    left = {index: room[index] - len(known[index]) for index in rest}
    pad = padding_id(tokenizer, inner)
    with evaluating(inner), torch.no_grad(), _plain_greedy(inner, ends, pad):
        for batch, counts_here in share_of(_batches_within(asked, left, limit, batch_size), accelerator):
            processors = [] if drawing is None else [_Draw(drawing[0][batch], drawing[1])]
            longest = max(left[index] for index in batch)
            new = _continue(inner, [asked[index] for index in batch], ends, processors, longest, pad)
            if not counts_here:
                continue
            for index, tokens in zip(batch, new, strict=True):
                start, own = len(known[index]), tokens[: left[index]]
                found[index, start : start + len(own)] = np.asarray(own, dtype=np.int64) + 1
            if progress is not None:
                progress(len(batch))
    return np.asarray(sum_over_processes(found, accelerator), dtype=np.int64)


def _room(prompts: Sequence[tuple[int, ...]], limit: int | None, most: int) -> list[int]:
    """How many tokens each prompt may get. Answers end where the model's positions do.

    Raises:
        DataError: a prompt is longer than the model's position table.
    """
    room = [most if limit is None else min(most, limit - len(prompt) + 1) for prompt in prompts]
    if room and min(room) < 1:
        long = sum(one < 1 for one in room)
        raise DataError(
            f"{long} of {len(prompts)} prompts are longer than the {limit} positions that the model knows (the longest has "
            f"{max(map(len, prompts))} tokens): shorten them"
        )
    return room


def _batches_within(
    prompts: Mapping[int, tuple[int, ...]], room: Mapping[int, int], limit: int | None, batch_size: int
) -> list[list[int]]:
    """Batches of prompts, by their keys. ``room`` says how many tokens each may get.

    A batch goes on until its last answer ends. Prompts for which that could be beyond the model's positions are put together
    by their length, so that an answer does not depend on the other prompts.
    """
    positions = {index: 0 if limit is None else limit - len(prompt) + 1 for index, prompt in prompts.items()}
    most = max(room.values(), default=0)
    limited = {index: 0 if limit is None or left >= most else left for index, left in positions.items()}
    batches: list[list[int]] = []
    for left in sorted(set(limited.values())):
        own = [index for index in prompts if limited[index] == left]
        lengths = [len(prompts[index]) for index in own]
        # A budget of longest prompt × batch_size never limits a batch, so only batch_size does.
        batches += [
            [own[index] for index in batch] for batch in length_batches(lengths, batch_size * max(lengths), batch_size)
        ]
    return batches


class _Draw:
    """Turn greedy generation into sampling: set all logits of a row to −∞ except the sampled token's."""

    def __init__(self, uniforms: Floats, temperature: float) -> None:
        self.uniforms = torch.as_tensor(uniforms)
        self.temperature = temperature
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = draw_tokens(scores, self.uniforms[:, self.step].to(scores.device), self.temperature)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def draw_tokens(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution at a given number.

    Args:
        logits: (B, V).
        uniforms: (B,) doubles in [0, 1).
        temperature: divisor of the logits.

    Returns:
        (B,) tokens, never one of probability 0. For probabilities ½, 0, ½ the numbers 0, 0.49 and 0.5 give tokens 0, 0, 2.
    """
    # in double precision: in fp32, the rounding error of the sum over a large vocabulary exceeds a rare token's probability
    ends = (logits.double() / temperature).softmax(-1).cumsum(-1)
    # the last value can differ from 1 by rounding; scaling by it keeps every number within the vocabulary
    places = (uniforms * ends[:, -1])[:, None]
    return torch.searchsorted(ends, places, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All tokens that end an answer.

    These are the tokenizer's EOS token, the one with which its chat template ends an answer, and those in the model's
    generation config. For base models with a chat template they differ: EOS is ``<|endoftext|>``, and a turn ends with
    ``<|im_end|>``.
    """
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ids = named if isinstance(named, list | tuple) else [named]
    own = (tokenizer.eos_token_id, turn_end(tokenizer))
    return tuple(sorted({int(token) for token in (*ids, *own) if token is not None}))


def save_end_tokens(model: Any, tokenizer: Any) -> None:
    """Write the end tokens to the model's generation config, so that other programs stop where its answers end."""
    config = getattr(model, "generation_config", None)
    if config is not None and (ends := end_token_ids(model, tokenizer)):
        config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]


@contextmanager
def _plain_greedy(model: Any, ends: Sequence[int], pad: int) -> Iterator[None]:
    """Context with plain greedy generation.

    ``generate`` merges the model's own generation config (temperature, repetition penalty) into its arguments, so that config
    is replaced instead of overridden. A PEFT wrapper passes on its own config, so both are replaced.
    """
    from transformers import GenerationConfig

    plain = GenerationConfig(do_sample=False, num_beams=1, eos_token_id=list(ends) or None, pad_token_id=pad)
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    before = [getattr(owner, "generation_config", None) for owner in owners]
    for owner in owners:
        owner.generation_config = plain
    try:
        yield
    finally:
        for owner, own in zip(owners, before, strict=True):
            owner.generation_config = own


def _continue(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    ends: Sequence[int],
    processors: list[_Draw],
    longest: int,
    pad: int,
) -> list[list[int]]:
    """The new tokens of each prompt before the first end token.

    Rows whose answers have ended leave the batch every ``_STAGE`` tokens, so that a few long answers do not cost the whole batch.
    """
    from transformers import LogitsProcessorList

    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    ids, mask = input_ids.to(device), attention_mask.to(device)
    cache, found, rows = _plain_cache(model), [[] for _ in prompts], list(range(len(prompts)))  # type: ignore[var-annotated]
    done = 0
    while rows and done < longest:
        more = longest - done if cache is None else min(_STAGE, longest - done)
        how = {} if cache is None else {"past_key_values": cache}
        ids = model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=LogitsProcessorList(processors),
            max_new_tokens=more,
            **how,
        )
        done += more
        for row, tokens in zip(rows, ids[:, width:].tolist(), strict=True):
            found[row] = _before_end(tokens, ends)
        alive = [place for place, row in enumerate(rows) if len(found[row]) == done]
        if cache is None or not alive:
            break
        rows = [rows[place] for place in alive]
        chosen = torch.tensor(alive, device=device)
        ids, mask = ids[chosen], nn.functional.pad(mask[chosen], (0, more), value=1)
        cache.batch_select_indices(chosen)
        for one in processors:
            one.uniforms = one.uniforms[chosen.to(one.uniforms.device)]
    return found


def _plain_cache(model: Any) -> Any:
    """An empty cache of keys and values whose rows can be taken out; None for a model that has another kind."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder:
        return None
    try:
        cache = DynamicCache(config=model.config)
    except (AttributeError, TypeError, ValueError):  # a config may lack what the cache reads
        return None
    return cache if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers) else None


def _before_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:stop])


def _text(tokenizer: Any, tokens: Any) -> str:
    text: str = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    return text.strip()
