"""Answer log-probs of a frozen head by Liger's fused kernel, on a GPU, where ``pip install llm-forget[kernels]`` has been made.

The kernel never holds the logits of all positions and reads each of them once. It is tried once per run: what does not give the
numbers of ``head.py`` is not used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llm_forget.model.head import HeadUse, chosen_logps, head_use, hold_fused, output_head, row_slope
from llm_forget.model.kernel_trial import Difference, agrees, relative_difference

# Largest difference of a log-prob in nats, and of its gradient relative to the largest one; rounding in bf16 is 4e-3.
_LARGEST = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-3, 1e-2), torch.float16: (1e-3, 1e-2)}
_ROWS = 8
_DEVICES = ("cuda",)
Fused = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@contextmanager
def fused_head(model: nn.Module, *, wanted: bool = True, say: Callable[[str], None] = lambda _: None) -> Iterator[bool]:
    """In this context a frozen head gives log-probs by the fused kernel, where it can be used.

    Args:
        model: wrapped or not, on its device.
        wanted: False to use the usual code in any case.
        say: called with a note if the kernel is installed and its numbers or an error forbid it.

    Yields:
        Whether it is used.
    """
    fused = _usable(model, say) if wanted else None
    hold_fused(model, fused)
    try:
        yield fused is not None
    finally:
        hold_fused(model, None)


def _usable(model: nn.Module, say: Callable[[str], None]) -> Fused | None:
    """The kernel for this model's head; None without the package or a GPU, or if the head is no frozen linear layer."""
    device = next(model.parameters()).device
    if device.type not in _DEVICES or importlib.util.find_spec("liger_kernel") is None:
        return None
    head = output_head(model)
    if type(head) is not nn.Linear or head.weight.requires_grad or head.bias is not None:
        return None  # the kernel rounds the product before it adds a bias
    if head.weight.dtype not in _LARGEST or head_use(model) is not HeadUse.CHUNKS:
        return None
    most = _LARGEST[head.weight.dtype]

    def measured() -> list[Difference]:
        logps, slopes = differences(head, liger(head))
        return [(logps, most[0], "nats"), (slopes, most[1], "of a gradient")]

    used = agrees("Liger's kernel", "the usual code computes the log-probs", measured, say)
    return liger(head) if used else None


def liger(head: nn.Linear) -> Fused:
    """Liger's fused linear cross-entropy for one head: hidden states (N, H) and tokens (N,) → log-probs (N, 1) and slopes (N, H).

    With ``reduction="none"`` the kernel's gradient is that of each row's own loss, which is what any loss of log-probs needs.
    Its autograd function would run the head again in backward.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward as kernel

    def logps(hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        rows = hidden.detach().to(head.weight.dtype).contiguous()
        # autocast would convert the operands once more, and the kernel's products are in the dtype of the weights
        with torch.autocast(hidden.device.type, enabled=False), torch.no_grad():
            loss, _, _, _, slope, _, _ = kernel(
                rows, head.weight, wanted, reduction="none", compute_gradients=True, weight_requires_grad=False
            )
        return -loss[:, None].float(), -slope.to(hidden.dtype)

    return logps


def differences(head: nn.Linear, fused: Fused) -> tuple[float, float]:
    """How far the kernel is from ``head.py`` on a few rows: log-probs in nats, and slopes as a share of the largest one."""
    made = torch.Generator().manual_seed(0)
    hidden = torch.randn(_ROWS, head.in_features, generator=made).to(head.weight)
    wanted = torch.randint(0, head.out_features, (_ROWS,), generator=made).to(head.weight.device)
    found, slope = fused(hidden, wanted)
    with torch.autocast(hidden.device.type, enabled=False):
        own, expected = row_slope(hidden, lambda rows: chosen_logps(head, rows, wanted))
    return float((found - own).abs().max()), relative_difference([slope], [expected])
