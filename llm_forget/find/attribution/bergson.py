"""Similarity of preconditioned gradients by the library bergson (TrackStar), as a second opinion; an optional extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import UserError
from llm_forget.model.batching import answer_batches, evaluating
from llm_forget.model.limits import check_rows
from llm_forget.model.logprobs import score_answers
from llm_forget.model.weights import autocast_like
from llm_forget.utils.extras import require_extra

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bergson:
    """Rank rows by the cosine of projected gradients that are whitened by the candidates' second moments (TrackStar).

    bergson collects and projects the gradients of the decoder's linear layers; batches, forward pass and loss are this
    package's. Nothing is written to disk.

    Attributes:
        projection_dim: the gradient of each layer is projected to a square matrix of this size.
        moments_rows: most rows from which the second moments are estimated; bergson keeps their gradients in memory.

    Source: Chang et al. 2024, arXiv:2410.17413 (TrackStar), as in EleutherAI's bergson 2.5.
    """

    projection_dim: int = 16
    moments_rows: int = 1024

    def row_scores(
        self,
        model: Any,
        rows: Sequence[Encoded],
        queries: Sequence[Encoded],
        *,
        pad_token_id: int,
        batch_tokens: int = 2048,
        progress: Callable[[int], None] | None = None,
        accelerator: Any = None,
    ) -> Floats:
        """(E,) mean cosine over the queries, in [−1, 1]; NaN for a row without a scored token.

        Args:
            model: a causal language model on its device, with or without an adapter.
            rows: the candidates.
            queries: the answers to explain.
            pad_token_id: any id of the vocabulary.
            batch_tokens: most tokens of a batch, with padding.
            progress: called after each batch of the pass over all rows with its number of rows.
            accelerator: None, or an ``accelerate.Accelerator`` of one process.

        Raises:
            MissingExtraError: bergson is not installed.
            UserError: there are several processes.
            DataError: the model cannot read a row.
        """
        require_extra("bergson", "attribution with bergson", "bergson")
        if accelerator is not None and accelerator.num_processes > 1:
            raise UserError(
                f"attribution with bergson runs in one process, and {accelerator.num_processes} were started; start one, or "
                "choose another kind of attribution, whose processes share the rows"
            )
        check_rows(model, [*rows, *queries], "searched")
        found = np.full(len(rows), np.nan)
        scored = [index for index, row in enumerate(rows) if row.answer_length]
        if scored:
            collect = _Collect(model, self.projection_dim, pad_token_id, batch_tokens)
            with evaluating(model), _flowing(model):
                cosines = _cosines(collect, [rows[index] for index in scored], queries, self.moments_rows, progress)
            found[scored] = cosines.mean(axis=0)
        return found


def _cosines(
    collect: _Collect,
    rows: Sequence[Encoded],
    queries: Sequence[Encoded],
    moments_rows: int,
    progress: Callable[[int], None] | None,
) -> Floats:
    """(Q, E)."""
    from bergson.hessians.preconditioner import DensePreconditioner
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from bergson.score.scorer import Scorer

    sample = [rows[place] for place in np.linspace(0, len(rows) - 1, min(len(rows), moments_rows)).astype(int)]
    moments = collect(sample, skip_hessians=False).processor
    preconditioner = DensePreconditioner.from_processor(moments, power=-0.5)
    wanted = _unit(preconditioner.apply(collect(queries).gradients))
    writer = InMemorySequenceScoreWriter(len(rows), len(queries))
    scorer = Scorer(
        wanted,
        list(wanted),
        writer,
        collect.device,
        torch.float32,
        unit_normalize=True,
        index_transform=preconditioner.apply,
    )
    collect(rows, progress=progress, scorer=scorer)
    return np.asarray(writer.scores.double().numpy().T)


@dataclass
class _Collect:
    """bergson's collector in memory, driven by this package's batches, forward pass and loss."""

    model: Any
    projection_dim: int
    pad_token_id: int
    batch_tokens: int

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def __call__(self, rows: Sequence[Encoded], progress: Callable[[int], None] | None = None, **settings: Any) -> Any:
        """The collector after one pass over the rows: its ``gradients``, or the moments in its ``processor``."""
        from bergson import GradientProcessor, IndexConfig, InMemoryCollector
        from datasets import Dataset

        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        collector = InMemoryCollector(
            model=inner.base_model,
            data=Dataset.from_dict({"length": [len(row.input_ids) for row in rows]}),  # the collector reads no text
            cfg=IndexConfig(run_path=""),
            processor=GradientProcessor(projection_dim=self.projection_dim),
            **settings,
        )
        for batch in answer_batches(rows, self.batch_tokens):
            inputs = collate([rows[index] for index in batch], self.pad_token_id)
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            with collector.with_batch(inputs["attention_mask"].bool()), torch.enable_grad(), autocast_like(self.model):
                losses = -score_answers(self.model, inputs).mean_logps
                losses.sum().backward()  # type: ignore[no-untyped-call]
            collector.process_batch(batch, losses=losses)
            if progress is not None:
                progress(len(batch))
        collector.teardown()
        return collector


@contextmanager
def _flowing(model: Any) -> Iterator[None]:
    """Context in which only the embeddings need gradients, so that backward hooks run in every layer above them."""
    flags = [(value, value.requires_grad, value.grad) for value in model.parameters()]
    for value, _, _ in flags:
        value.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    try:
        yield
    finally:
        for value, required, gradient in flags:
            value.requires_grad_(required)
            value.grad = gradient


def _unit(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layer → (Q, n); each query has norm 1 over all layers."""
    norm = torch.cat([one.float() for one in gradients.values()], dim=1).norm(dim=1, keepdim=True)
    return {name: one.float() / norm for name, one in gradients.items()}
