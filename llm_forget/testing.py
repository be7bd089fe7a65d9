"""Things to test with that need no download: a tokenizer and a tiny model that has memorised its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.logprobs import score_answers

# As published chat models have it: a newline stands after the end token, and a prompt opens the assistant's turn.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|begin|>")
# Merges of byte-level BPE, a few common English ones: enough for tokens to reach over a careless boundary.
_MERGES = (
    "t h", "th e", "i n", "e r", "o n", "a n", "r e", "h e", "o u", "i s", "a t", "e n", "o r", "s t", "a l", "l l",
    "in g", "an d", "Ġ t", "Ġ a", "Ġ s", "Ġ w", "Ġ i", "Ġ o", "Ġ b", "Ġ c", "Ġt he", "Ġ is", "Ġ in", "Ġo f", "Ċ Ċ",
)  # fmt: skip


def tiny_tokenizer(*, bos: bool = False, chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Make a small tokenizer with the habits that trip up encoding.

    It is byte-level, so that every text survives encoding and decoding; its padding token is its end token; and its
    template writes a newline after the end token.

    Args:
        bos: put a BOS token before raw text, as Llama's tokenizers do.
        chat_template: a Jinja chat template, None for a base model's tokenizer without one.

    Returns:
        A transformers tokenizer of fewer than 400 tokens, the same one every time.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in _MERGES)]
    names = dict.fromkeys([*alphabet, *(left + right for left, right in merges)])
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL])
    if bos:
        begin = _SPECIAL[2]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_SPECIAL[2] if bos else None,
        eos_token=_SPECIAL[1],
        pad_token=_SPECIAL[1],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = chat_template
    return made


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int = 64, layers: int = 2, seed: int = 0
) -> LlamaForCausalLM:
    """A Llama of some hundred thousand weights over a tokenizer's vocabulary, the same one for every seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        dtype="float32",
    )
    return LlamaForCausalLM(config).eval()


def memorise(model: LlamaForCausalLM, rows: Sequence[Encoded], *, steps: int = 60, learning_rate: float = 1e-2) -> None:
    """Train all weights on rows until the model knows them: what unlearning tests start from."""
    batch = collate(rows, 0)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    model.train()
    for _ in range(steps):
        loss = -score_answers(model, batch).mean_logps.mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model.eval()
