"""GPUs that people train on: their memory, and their peak in bf16."""

from __future__ import annotations

from dataclasses import dataclass

from llm_forget.errors import RecipeError

# Share of the peak that a step of a large model usually reaches. Small models and short rows stay far below it.
USUAL_SHARE = 0.4


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: how people call it.
        memory: bytes.
        peak: dense bf16 operations per second that its data sheet states, with fp32 accumulation.
    """

    name: str
    memory: float
    peak: float


GPUS = (
    Gpu("L4", 24e9, 121e12),
    Gpu("A10", 24e9, 125e12),
    Gpu("RTX 4090", 24e9, 165e12),
    Gpu("L40S", 48e9, 362e12),
    Gpu("A100 40GB", 40e9, 312e12),
    Gpu("A100 80GB", 80e9, 312e12),
    Gpu("H100", 80e9, 989e12),
    Gpu("H200", 141e9, 989e12),
    Gpu("B200", 180e9, 2250e12),
)


def gpu_of(name: str) -> Gpu:
    """The GPU of a name, whatever its case, spaces and dashes.

    Raises:
        RecipeError: it is none of ``GPUS``.
    """
    wanted = _plain(name)
    found = next((gpu for gpu in GPUS if _plain(gpu.name) == wanted), None)
    if found is None:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise RecipeError(f"--gpu {name}: unknown; known are {known}. For another one give --memory SIZE")
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
