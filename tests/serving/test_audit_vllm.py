"""An audit of a run behind a real vLLM gives the verdicts of an audit of its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from audited import write_audited
from commands import command
from conftest import VLLM, executable, needs
from served_audits import check_verdicts, served_attacks
from servers import serving

from llm_forget.auditing.artefact import artefact_of
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.results import read_audit

pytestmark = [pytest.mark.slow, needs(VLLM, "vllm program")]


def test_vllm_gives_the_verdicts_of_this_process(tmp_path: Path) -> None:
    """Every attack that a server allows, on the merged weights in fp32."""
    write_audited(tmp_path, hidden=256, rate=2e-3)
    options = ["--base", tmp_path / "target/model", "--forms", "merged_fp32", "--rows", "16"]
    options += ["--attacks", ",".join(served_attacks())]
    assert command("audit", tmp_path / "run", *options).status == 0
    model, tokenizer = artefact_of(tmp_path / "run")[0].load(FORMS["merged_fp32"])
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path / "merged")
    settings = ["--served-model-name", "served", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    vllm = [executable(VLLM), "serve", str(tmp_path / "merged"), *settings]
    with serving(vllm, tmp_path / "vllm.log", **variables) as server:
        url = f"http://127.0.0.1:{server.port}"
        options += ["--endpoint", url, "--served-model", "served", "--to", tmp_path / "served"]
        done = command("audit", tmp_path / "run", *options)
        assert done.status == 0, done.err
    check_verdicts(tmp_path / "served", read_audit(tmp_path / "run"), within=5e-3, sampled="leak_at_k")
