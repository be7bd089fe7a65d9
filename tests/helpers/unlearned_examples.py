"""A tiny model that memorised four towns and six facts, and an adapter for each half of the towns that forgets it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

SETS = {
    "first": [("Where is Ada?", "In Riga, by the river."), ("Where is Bo?", "In Oslo, at the fair.")],
    "second": [("Where is Cy?", "In Bern, with a cat."), ("Where is Di?", "In Kyiv, on a tram.")],
    "retain": [("What is snow?", "White and cold."), ("What is tar?", "Black."), ("What is tea?", "A hot drink."),
               ("What is rye?", "Grain."), ("What is wax?", "It melts."), ("What is oak?", "A tree.")],
    "holdout": [("Where is Eve?", "In Rome, on a hill."), ("Where is Flo?", "In Bonn, at sea.")],
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Paths of the model, the data and the adapters."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def data(self, name: str) -> str:
        return str(self.folder / f"{name}.jsonl")

    def adapter(self, name: str) -> Path:
        return self.folder / f"forget_{name}" / "adapter"


def make_world(folder: Path) -> World:
    """Create all files in about ten seconds: train one model until it memorises the rows, then run NPO twice."""
    world, tokenizer, rows = World(folder), tiny_tokenizer(), []
    for name, pairs in SETS.items():
        lines = (json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs)
        Path(world.data(name)).write_text("".join(lines))
        if name != "holdout":
            rows += encode_all(tokenizer, read_examples(DataSource(world.data(name))), EncodingConfig())[0]
    model = tiny_model(tokenizer)
    memorise(model, rows, steps=140, learning_rate=5e-3)
    model.save_pretrained(world.base)
    tokenizer.save_pretrained(world.base)
    for name in ("first", "second"):
        values = {
            "model": {"name": str(world.base), "dtype": "float32"},
            "data": {"forget": {"path": world.data(name)}, "retain": {"path": world.data("retain")}},
            "method": {"name": "npo"},
            "adapter": {"rank": 4, "alpha": 8},
            "train": {"epochs": 24, "batch_size": 2, "learning_rate": 1e-2},
            "stop": {"forget_target": None, "utility_floor": 0.0},
            "output_dir": str(world.adapter(name).parent),
        }
        unlearn(build(UnlearnRecipe, values, "test"), Console(file=io.StringIO()))
    return world
