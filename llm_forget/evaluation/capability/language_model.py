"""The model that lm-eval asks: in this process, or behind a server."""

from __future__ import annotations

from typing import Any

from llm_forget.model.head import below_wrapper
from llm_forget.model.served import ServedModel


def lm_eval_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Wrap a model for lm-eval. Both kinds see the same tokens of each question.

    Args:
        model: a causal language model, wrapped or not, or a ``ServedModel``.
        tokenizer: its tokenizer.
        batch_size: choices per forward pass; a server has its own.
    """
    from lm_eval.models.huggingface import HFLM

    if isinstance(model, ServedModel):
        return _served_class()(model, tokenizer)
    return HFLM(pretrained=below_wrapper(model), tokenizer=tokenizer, batch_size=batch_size)


def _served_class() -> Any:
    # lm-eval is optional and slow to import, so its class is extended when it is needed
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Served(TemplateLM):  # type: ignore[misc,unused-ignore]
        """lm-eval's interface over ``ServedModel``."""

        def __init__(self, model: ServedModel, tokenizer: Any) -> None:
            super().__init__()
            self.served, self.tokenizer = model, tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            begin = self.tokenizer.bos_token_id
            return self.eot_token_id if begin is None else int(begin)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            # as HFLM does: None is the tokenizer's own rule, unless the text already begins with its first token
            if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False
            how = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return list(self.tokenizer.encode(string, **how))

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            # the question is cut from its beginning, as HFLM does
            rows = [(*question, *answer) for _, question, answer in requests]
            limit = len(max(rows, key=len, default=())) if self.served.length is None else self.served.length - 1
            found = self.served.places([row[-limit:] for row in rows])
            counts = [len(answer) for _, _, answer in requests]
            own = [places[len(places) - count :] for places, count in zip(found, counts, strict=True)]
            return [(sum(one.logp for one in places), all(one.hit for one in places)) for places in own]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            sums = []
            for request in requests:
                tokens = self.tok_encode(request.args[0])
                most = (len(tokens) + 1 if self.served.length is None else self.served.length) - 1
                windows = get_rolling_token_windows(tokens, self.prefix_token_id, most, 1)
                parts = [("", *make_disjoint_window(window)) for window in windows]
                sums.append(sum(logp for logp, _ in self._loglikelihood_tokens(parts)))
            return sums

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            said = []
            for request in requests:
                text, how = request.args[0], dict(request.args[1])
                most = int(how.get("max_gen_toks", 256))
                tokens = tuple(self.tok_encode(text))
                room = len(tokens) if self.served.length is None else max(self.served.length - most, 1)
                answer = self.served.complete([tokens[-room:]], max_new_tokens=most)[0]
                stops = how.get("until") or []
                for stop in [stops] if isinstance(stops, str) else stops:
                    answer = answer.split(stop)[0] if stop else answer
                said.append(answer)
            return said

    return Served
