"""An audit of a run behind a real vLLM gives the verdicts of an audit of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audited import write_audited
from commands import command
from conftest import VLLM, executable, needs
from planted import made as attack_named
from servers import serving

from llm_forget.auditing.artefact import artefact_of
from llm_forget.auditing.attack import Access
from llm_forget.auditing.audit import PACKAGE
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.results import read_audit
from llm_forget.utils.plugins import names_in

pytestmark = [pytest.mark.slow, needs(VLLM, "vllm program")]
SAMPLED = "leak_at_k"
SERVED = Access.CHAT | Access.TOKENS | Access.LOGPS


def test_vllm_gives_the_verdicts_of_this_process(tmp_path: Path) -> None:
    """Every attack that a server allows, on the merged weights in fp32."""
    write_audited(tmp_path, hidden=256, rate=2e-3)
    names = [name for name in names_in(PACKAGE, "attack") if not attack_named(name).needs & ~SERVED]
    options = [
        "--base",
        tmp_path / "target/model",
        "--forms",
        "merged_fp32",
        "--attacks",
        ",".join(names),
        "--rows",
        "16",
    ]
    assert command("audit", tmp_path / "run", *options).status == 0
    here = read_audit(tmp_path / "run")
    model, tokenizer = artefact_of(tmp_path / "run")[0].load(FORMS["merged_fp32"])
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path / "merged")
    settings = ["--served-model-name", "served", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    vllm = [executable(VLLM), "serve", str(tmp_path / "merged"), *settings]
    with serving(vllm, tmp_path / "vllm.log", **variables) as server:
        endpoint = [
            "--endpoint",
            f"http://127.0.0.1:{server.port}",
            "--served-model",
            "served",
            "--to",
            tmp_path / "served",
        ]
        done = command("audit", tmp_path / "run", *options, *endpoint)
        assert done.status == 0, done.err
    raw = json.loads((tmp_path / "served/audit.json").read_text())
    assert here is not None
    assert (raw["grade"]["level"], raw["grade"]["words"]) == (here.grade.level, here.grade.words)
    assert len(raw["cells"]) == len(names) > 10
    for cell in raw["cells"]:
        own = here.cell(cell["attack"], "merged_fp32")
        assert own is not None
        if cell["attack"] == SAMPLED:  # a server draws other samples
            assert cell["low"] <= own.high
            assert own.low <= cell["high"]
            continue
        assert (cell["answer"], cell["rows"]) == (own.answer, own.rows), cell["attack"]
        assert cell["value"] == pytest.approx(own.value, abs=5e-3), cell["attack"]
