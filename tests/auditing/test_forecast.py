"""The forecast of what rounding leaves of an update, from files alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from adapter_examples import trained_adapter

from llm_forget.adapters.merge import merge
from llm_forget.auditing.forecast import forecast
from llm_forget.auditing.rounding import linear_weights
from llm_forget.errors import UserError
from llm_forget.testing import tiny_model, tiny_tokenizer


def saved(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.mark.parametrize("quantiser", ["int4_rtn", "gguf_q4"])
def test_a_larger_update_survives_rounding_better(quantiser: str, tmp_path: Path) -> None:
    base = tiny_model(tiny_tokenizer())
    folder = saved(tmp_path / "base", base)
    kept, ratios = [], []
    for size in (1e-4, 1e-3, 1e-2):
        torch.manual_seed(0)
        changed = copy.deepcopy(base)
        with torch.no_grad():
            for _, weight in linear_weights(changed):
                weight += size * torch.randn_like(weight)
        found = forecast(folder, saved(tmp_path / f"{size}", changed), quantiser)  # type: ignore[arg-type]
        assert found is not None
        assert len(found.layers) == 14
        assert set(found.by_block()) == {0, 1}
        kept.append(found.kept)
        ratios.append(found.ratio)
    assert kept[0] < kept[1] < kept[2]
    assert 0 < kept[0] < 0.5 < kept[2] < 1
    assert ratios[2] / ratios[0] == pytest.approx(100, rel=0.02)


def test_an_adapter_and_the_merged_model_have_one_forecast(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny_model(tiny_tokenizer()))
    adapter = trained_adapter(base, tmp_path / "adapter")
    merged = merge(base, adapter, tmp_path / "merged")
    one, other = forecast(base, adapter, "int4_rtn"), forecast(base, merged, "int4_rtn")
    assert one is not None
    assert other is not None
    assert one.kept == pytest.approx(other.kept, abs=1e-3)
    assert forecast(base, base, "int4_rtn") is None
    with pytest.raises(UserError, match="no forecast for int8"):
        forecast(base, adapter, "int8")
