"""Deploying into a running vLLM: kept if it answers as here, and rolled back if another adapter is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import VLLM, Made, needs
from servers import Server

from llm_forget.adapters.arithmetic import scale
from llm_forget.adapters.lora import load_adapter, save_adapter
from llm_forget.sharing import deploy as deploying
from llm_forget.sharing.deploy import deploy

pytestmark = [pytest.mark.slow, needs(VLLM, "vllm program")]


def test_an_adapter_is_kept_and_another_one_is_rolled_back(
    vllm: Server, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, address = made.adapter.parent, f"http://127.0.0.1:{vllm.port}"
    first = deploy(run, address, "deployed")
    assert first.ok, first.lines
    assert "5 of 5 control questions are answered alike" in first.lines[-1]
    wrong, load = save_adapter(scale(load_adapter(made.adapter), -1), tmp_path / "wrong"), deploying._load

    def load_another(endpoint: Any, name: str, folder: Path | str, *, replace: bool) -> None:
        load(endpoint, name, wrong if isinstance(folder, Path) else folder, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr(deploying, "_load", load_another)
        for name, end in (("deployed", f"is served from {made.adapter} again"), ("new", "is not served any more")):
            done = deploy(run, address, name)
            assert not done.ok
            assert done.lines[-1] == f"rolled back: {name} {end}"
    assert deploy(run, address, "deployed").ok
    vllm.unload("deployed")
