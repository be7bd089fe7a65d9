"""The forms in which a model may be served. Names and properties only; ``artefact`` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantiser = Literal["int8", "nf4", "int4_rtn", "gguf_q4", "gguf_q8"]


@dataclass(frozen=True)
class Form:
    """One form of a model.

    Attributes:
        name: its name in tables.
        words: what it is, in plain words.
        adapter: whether the adapter is separate from the weights, so that it can be scaled or taken off.
        dtype: dtype to which the weights were rounded. All forms but fp32 and int8 run in the fastest dtype of the machine: bf16
            products are slow on many CPUs, and fp32 holds the rounded weights exactly.
        quantiser: how the weights were rounded; None for no rounding besides the dtype.
    """

    name: str
    words: str
    adapter: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantiser: Quantiser | None = None

    @property
    def packed(self) -> bool:
        """Whether the weights are held in 8 bits while the model runs, so that an attack cannot edit or train them."""
        return self.quantiser == "int8"


FORMS = {
    form.name: form
    for form in (
        Form("merged_fp32", "merged into the weights, fp32"),
        Form("merged_bf16", "merged into the weights, bf16", dtype="bfloat16"),
        Form("adapter_fp32", "adapter on the fp32 base", adapter=True),
        Form("adapter_bf16", "adapter on the bf16 base", adapter=True, dtype="bfloat16"),
        Form("int8", "merged, then 8 bits (bitsandbytes)", quantiser="int8"),
        Form("nf4", "merged, then 4 bits (bitsandbytes nf4)", quantiser="nf4"),
        Form("int4_rtn", "merged, then 4 bits (round to nearest, groups of 128)", quantiser="int4_rtn"),
        Form("gguf_q8", "merged, then GGUF Q8_0", quantiser="gguf_q8"),
        Form("gguf_q4", "merged, then GGUF Q4_0", quantiser="gguf_q4"),
    )
}
