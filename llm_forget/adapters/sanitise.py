"""Sanitise an adapter: remove what it does to the inputs of rows to keep, in closed form.

An adapter adds ``scaling · B A x`` to a layer's output. If the rows of A are orthogonal to the directions in which the inputs of
rows to keep lie, these rows see nothing of the adapter. Only A changes, so rank, alpha and format stay. The projection
(``without_directions``) knows the rows to keep alone; the filter (``filtered``) also knows what must still be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llm_forget.adapters.lora import Factors
from llm_forget.errors import AdapterError


def leading_directions(moment: Tensor, energy: float) -> Tensor:
    """The fewest orthonormal directions that hold a share of the inputs' energy.

    Args:
        moment: (d, d) second moment of the inputs, ``Σ x xᵀ``, symmetric and positive semi-definite.
        energy: share of its trace, in [0, 1).

    Returns:
        (d, k) the leading eigenvectors. diag(8, 1, 1) and 0.85 give the first two; 0.8 gives the first.
    """
    values, vectors = torch.linalg.eigh(moment.float())  # ascending
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = values.sum()
    if not total > 0 or energy <= 0:
        count = 0
    else:
        count = int((values.cumsum(0) / total < energy - 1e-6).sum()) + 1
    leading: Tensor = vectors[:, :count]
    return leading


def without_directions(factors: Factors, directions: Tensor) -> Factors:
    """``A ← A (I − U Uᵀ)``: inputs along the columns of U no longer reach the adapter.

    Args:
        factors: the factors of one layer.
        directions: (d, k) orthonormal columns U.

    Returns:
        The factors with another A, of the same shape and dtype. A = (1, 2) and U = (1, 0)ᵀ give (0, 2).

    Source: post-hoc adapter sanitising, arXiv:2606.18309; null-space constrained unlearning, arXiv:2606.10989.
    """
    a, u = factors.A.float(), directions.float().to(factors.A.device)
    return replace(factors, A=(a - (a @ u) @ u.T).to(factors.A.dtype))


def filtered(
    layers: Sequence[Factors], forget: Tensor, keep: Tensor, strength: float, ridge: float = 0.1
) -> list[Factors]:
    """Keep what the adapter does to the inputs of forget rows, and remove what it does to the inputs of rows to keep.

    Minimises ``E‖(A' − A) x_f‖² + μ E‖A' x_r‖² + ρ ‖A' − A‖²`` over A'. The minimum is
    ``A' = A (C_f + ρ I) (C_f + μ C_r + ρ I)⁻¹``. Directions that only forget rows use are kept and those that only rows to keep
    use are removed; in between, the share of the forget rows decides. ρ keeps directions that hardly any input uses as they are.

    Args:
        layers: the factors of layers with the same inputs, which share one Cholesky factor, in fp64.
        forget: (d, d) second moment C_f of the inputs of forget rows.
        keep: (d, d) second moment C_r of the inputs of rows to keep.
        strength: μ ≥ 0; 0 changes nothing.
        ridge: ρ > 0, as a multiple of the mean diagonal entry of C_f, or of C_r if no forget row reaches the layers.

    Returns:
        The factors with another A, of the same shapes and dtypes. A = (1, 1), C_f = I, C_r = diag(1, 0) and μ = 1 give (½, 1)
        as ρ → 0.

    Raises:
        AdapterError: a moment is not finite.
    """
    device = layers[0].A.device
    a, own = torch.cat([one.A for one in layers]).double(), forget.to(device, torch.float64, copy=True)
    others = keep.to(device).double()
    level = ridge * (float(own.diagonal().mean()) or float(others.diagonal().mean()))
    if level == 0:  # no row reaches these layers, such as experts
        return list(layers)
    own.diagonal().add_(level)
    root, failed = torch.linalg.cholesky_ex(own + strength * others)
    if failed or not root.isfinite().all():
        raise AdapterError(
            "the inputs of a layer are not finite; check that the base answers the rows, or load it in float32."
        )
    solved = torch.cholesky_solve((a @ own).T, root).T
    new = torch.split(solved, [one.rank for one in layers])
    return [replace(one, A=part.to(one.A.dtype).contiguous()) for one, part in zip(layers, new, strict=True)]
