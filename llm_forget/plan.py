"""What a run will take of memory, before it is started: one step of the real model on tensors that have shapes and no content."""

from __future__ import annotations

import copy
import math
import re
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_forget.config import UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.head import chunk_rows, head_gives_logps, output_head
from llm_forget.logprobs import kl_divergence, place_rows
from llm_forget.models import add_adapter, attention_for, frozen_dtype, top_blocks
from llm_forget.recompute import checkpointing_arguments, frozen_stays_frozen

GB = 10**9
# What a card holds besides tensors: CUDA's context, cuBLAS workspaces, and what the allocator cannot hand out again.
CARD_FIXED, CARD_SHARE = 1.2e9, 0.05
# Bytes a weight of a quantised linear layer: nf4 keeps an fp32 scale for every 64 weights, int8 one for every row.
_QUANTISED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
_SHALLOW = (2, 4)  # layers of the models that are tried instead of a deep one
_STATE_BYTES = (("8bit", 2.1), ("4bit", 1.1), ("adafactor", 0.1), ("sgd", 0.0), ("lion", 4.0), ("adam", 8.0))


@dataclass(frozen=True)
class Plan:
    """Bytes at the peak of a training step, by what they are for.

    Attributes:
        weights: the model as it is held, frozen or trained.
        adapter: the adapter's weights.
        optimizer: its state.
        gradients: of what is trained.
        reference: a second copy of the weights; 0 where the adapter is switched off or log-probs are kept.
        activations: everything else that is alive at the peak, the logits left out.
        logits: what has the vocabulary as its last dimension.
        best_state: copies of what is trained, for rolling back: they lie in the CPU's memory.
        rows: of a micro-batch, forget and retain together.
        tokens: of a row.
        on_card: whether it is planned for a GPU.
    """

    weights: float
    adapter: float
    optimizer: float
    gradients: float
    reference: float
    activations: float
    logits: float
    best_state: float
    rows: int
    tokens: int
    on_card: bool

    @property
    def total(self) -> float:
        """Bytes on the device."""
        parts = [self.weights, self.adapter, self.optimizer, self.gradients, self.reference]
        parts += [self.activations, self.logits]
        return sum(parts) if self.on_card else sum(parts) + self.best_state

    @property
    def needed(self) -> float:
        """Bytes that the device must have: on a card, with what it holds besides tensors."""
        return self.total * (1 + CARD_SHARE) + CARD_FIXED if self.on_card else self.total


def plan(recipe: UnlearnRecipe, *, on_card: bool, tokens: int | None = None, model_config: Any = None) -> Plan:
    """Plan one run; needs the model's config and none of its weights.

    Args:
        recipe: the checked recipe.
        on_card: for a GPU that multiplies in bf16; otherwise for this machine's CPU.
        tokens: of the longest row; by default ``encoding.max_length``, which no row exceeds.
        model_config: a transformers config; by default that of the recipe's model.

    Raises:
        RecipeError: the recipe cannot work, or the model's config cannot be read.
    """
    from llm_forget.preflight import build_method, build_retain

    method = build_method(recipe)
    retain = build_retain(recipe.retain, method)
    needs = [part.needs for part in (method, retain) if part is not None]
    readers = sum(need.logits for need in needs)  # of forget rows, of retain rows, or of both
    wants_reference = any(need.reference_logits for need in needs)
    rows = recipe.train.batch_size * (2 if retain is not None else 1)
    length = tokens or recipe.encoding.max_length

    config = model_config or _config_of(recipe)
    model, _ = _on_meta(recipe, config, on_card)
    sizes = _weights(model, recipe)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)

    def peak_of(config: Any, blocks: range | None) -> Counter[str]:
        model, dtype = _on_meta(recipe, config, on_card, blocks)
        reference = wants_reference and recipe.adapter is not None
        step = _Step(model, rows, length, readers / len(needs), reference=reference, on_card=on_card)
        return step.peak(
            autocast=dtype == torch.bfloat16,
            checkpointing=checkpointing_arguments(recipe.train.gradient_checkpointing),
            accumulate=recipe.train.gradient_accumulation > 1,
        )

    depth = int(config.num_hidden_layers)
    adapted = len(top_blocks(recipe.adapter, depth) or range(depth)) if recipe.adapter else depth
    peak = _over_layers(config, adapted, peak_of)
    adapter = 4.0 * trained if recipe.adapter is not None else 0.0
    weights = sizes - adapter
    workspace = _dequantised(model) if recipe.model.quantization else 0.0
    checks = 0 if method.towards else 1
    return Plan(
        weights=weights,
        adapter=adapter,
        optimizer=_optimizer_bytes(recipe.train.optimizer) * trained,
        gradients=4.0 * trained,
        reference=weights if wants_reference and recipe.adapter is None else 0.0,
        activations=max(peak["all"] - peak["logits"] - 4.0 * trained, 0.0) + workspace,
        logits=float(peak["logits"]),
        best_state=4.0 * trained * checks,
        rows=rows,
        tokens=length,
        on_card=on_card,
    )


def largest_batch(recipe: UnlearnRecipe, memory: float, **how: Any) -> int:
    """The largest ``train.batch_size`` whose plan fits into so many bytes; 0 where not even 1 does."""

    def needed(size: int) -> float:
        return plan(replace(recipe, train=replace(recipe.train, batch_size=size)), **how).needed

    known = {1: needed(1)}
    if known[1] > memory:
        return 0
    guess, top = 2, None
    while top is None or top - max(size for size, bytes_ in known.items() if bytes_ <= memory) > 1:
        known[guess] = needed(guess)
        low = max(size for size, bytes_ in known.items() if bytes_ <= memory)
        top = min((size for size, bytes_ in known.items() if bytes_ > memory), default=None)
        # a row adds about the same each time, so a straight line through two plans lands near the answer
        near, far = sorted(known, key=lambda size: abs(known[size] - memory))[:2]
        slope = (known[near] - known[far]) / (near - far)
        line = near + math.floor((memory - known[near]) / slope) if slope > 0 else low * 2
        guess = max(low + 1, min(line, low * 16 if top is None else top - 1))
    return low


def parse_memory(text: str) -> float:
    """``40GB``, ``24 GiB``, ``512MB`` → bytes.

    Raises:
        RecipeError: it is something else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT])(i?)[bB]?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise RecipeError(f"memory {text!r} is not a size; write for example 40GB or 24GiB")
    unit = 1024.0 if found[3] else 1000.0
    power = "kmgt".index(found[2].lower()) + 1
    return float(found[1]) * math.pow(unit, power)


def _over_layers(config: Any, adapted: int, peak_of: Callable[[Any, range | None], Counter[str]]) -> Counter[str]:
    """The peak of a deep model from shallow ones: blocks that are alike take alike, and each adds the same.

    Args:
        config: of the deep model.
        adapted: so many blocks, from the top, are trained; what lies below keeps nothing.
        peak_of: the peak of a model with this config, whose blocks in this range are trained; None for all.
    """
    depth = int(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None)
    if depth <= _SHALLOW[1] or (kinds is not None and len(set(kinds)) > 1):
        return peak_of(config, range(depth - adapted, depth) if adapted < depth else None)

    def cut(below: int, trained: int) -> Counter[str]:
        shallow = copy.deepcopy(config)
        shallow.num_hidden_layers = below + trained
        if kinds is not None:
            shallow.layer_types = list(kinds)[: below + trained]
        return peak_of(shallow, range(below, below + trained) if adapted < depth else None)

    few, more = _SHALLOW
    below = min(depth - adapted, few)  # none, where all are trained
    found = cut(below, few)
    slopes = [((adapted - few) / (more - few), cut(below, more))]
    if below:
        slopes.append(((depth - adapted - below) / (more - below), cut(more, few)))
    return Counter(
        {name: round(first + sum(far * (one[name] - first) for far, one in slopes)) for name, first in found.items()}
    )


def _config_of(recipe: UnlearnRecipe) -> Any:
    from transformers import AutoConfig

    from llm_forget.models import locate_model

    name = locate_model(recipe.model.name)
    try:
        return AutoConfig.from_pretrained(
            name, revision=recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.name: the config of {name} cannot be read: {str(error).splitlines()[0]}") from error


def _on_meta(
    recipe: UnlearnRecipe, config: Any, on_card: bool, blocks: range | None = None
) -> tuple[nn.Module, torch.dtype]:
    """The model of the recipe, without storage; with the adapter on these blocks, or those that the recipe names."""
    from transformers import AutoModelForCausalLM

    full = recipe.adapter is None
    chosen = torch.bfloat16 if on_card and recipe.model.dtype == "auto" else frozen_dtype(recipe.model)
    dtype = torch.float32 if full else chosen
    attention = attention_for(recipe.model, dtype, on_cpu=not on_card) or "sdpa"
    if attention == "flash_attention_2":
        attention = "sdpa"  # of the same memory, and it can be planned without a card
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        if recipe.adapter is not None:
            model = add_adapter(model, recipe.adapter, blocks)
    return model, dtype


def _linear_weights(model: nn.Module) -> list[Tensor]:
    """What bitsandbytes would quantise: the frozen linear layers, without the head."""
    head = output_head(model)
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    ]


def _weights(model: nn.Module, recipe: UnlearnRecipe) -> float:
    """Bytes of all parameters and buffers, tied ones once."""
    tensors = {id(value): value for value in (*model.parameters(), *model.buffers())}
    size = float(sum(value.numel() * value.element_size() for value in tensors.values()))
    if recipe.model.quantization:
        each = _QUANTISED[recipe.model.quantization]
        size += sum(value.numel() * (each - value.element_size()) for value in _linear_weights(model))
    return size


def _dequantised(model: nn.Module) -> float:
    """The largest quantised layer is multiplied as a bf16 copy."""
    return 2.0 * max((value.numel() for value in _linear_weights(model)), default=0)


def _optimizer_bytes(name: str) -> float:
    """Bytes of state a trained weight."""
    return next((size for part, size in _STATE_BYTES if part in name.lower()), 8.0)


class _Step:
    """One micro-batch, forward and backward, on tensors without content."""

    def __init__(
        self, model: nn.Module, rows: int, tokens: int, read: float, *, reference: bool, on_card: bool
    ) -> None:
        self.model, self.rows, self.tokens = model, rows, tokens
        self.read = round(read * rows)  # so many rows' logits are read by a loss
        self.reference, self.on_card = reference, on_card

    def peak(self, *, autocast: bool, checkpointing: dict[str, Any] | None, accumulate: bool) -> Counter[str]:
        """Bytes alive at the worst moment, model and optimiser left out: ``all``, and of these ``logits``."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        model: Any = self.model.train()
        if checkpointing is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
            frozen_stays_frozen(model)
        vocabulary = int(model.config.vocab_size)
        with FakeTensorMode(allow_non_fake_inputs=True):
            _give_storage(model)
            ids = torch.zeros(self.rows, self.tokens, dtype=torch.long)
            with _Alive(vocabulary) as alive, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                for _ in range(2 if accumulate else 1):
                    torch.autograd.backward(self._loss(ids))
        peak: Counter[str] = alive.peak
        return peak

    def _loss(self, ids: Tensor) -> Tensor:
        """As ``score_answers`` and the trainer, for rows that are all answer but their first token."""
        logps, kept = self._scores(ids)
        loss = logps.sum()
        if kept is not None:
            if self.reference:
                with torch.no_grad():
                    _, other = self._scores(ids[: self.read])
                loss = loss + kl_divergence(other, kept).sum()  # type: ignore[arg-type]
            else:
                loss = loss + kept.logsumexp(-1).sum()
        return loss

    def _scores(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probs of all tokens, and of the rows whose logits a loss reads these, laid out answer by answer."""
        rows, width = ids.shape[0], ids.shape[1] - 1
        targets = torch.zeros(rows * width, dtype=torch.long)
        size = None if self.read else chunk_rows(self.model, len(targets), on_cpu=not self.on_card)
        with nullcontext() if size is None else head_gives_logps(self.model, targets, size):
            logits = self._logits(ids).float()
        if size is not None:
            return logits, None
        logps = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
        if not self.read:
            return logps, None
        kept = logits[: self.read * width]
        return logps, place_rows(kept, torch.arange(len(kept)), (self.read, width))

    def _logits(self, ids: Tensor) -> Tensor:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][:, :-1].reshape(-1, args[0].shape[-1]), *args[1:])

        handle = output_head(self.model).register_forward_pre_hook(keep)
        try:
            model: Any = self.model
            logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        finally:
            handle.remove()
        return logits


def _give_storage(model: nn.Module) -> None:
    """Replace meta tensors by fake ones, in place; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and id(value) not in made:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    trained = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad) if trained else empty
                if value is not None:
                    held[name] = made[id(value)]  # type: ignore[assignment]


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations have made and nobody has let go of."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        kind = "logits" if tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary else "other"
        for name in (kind, "all"):
            self.now[name] += size
        if self.now["all"] > self.peak["all"]:
            self.peak = Counter(self.now)
        weakref.finalize(storage, self._let_go, key, kind, size)

    def _let_go(self, key: int, kind: str, size: int) -> None:
        self._seen.discard(key)
        for name in (kind, "all"):
            self.now[name] -= size
