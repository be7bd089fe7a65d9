"""Test that the example in CONTRIBUTING.md works as written: one file adds a method, another a retain term."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

RETAIN_TERM = '''"""Total variation distance to the reference at the retain answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Needs, needed
from llm_forget.retain import RetainTerm
from llm_forget.scores import AnswerScores, mean_over_answer


@dataclass(frozen=True)
class TotalVariation(RetainTerm):
    """Half the L1 distance of both distributions (Levin and Peres 2017)."""

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """(B,) mean distance over each retain answer, in [0, 1]."""
        policy = needed(retain.logits, "total_variation", "the policy's logits").softmax(-1)
        reference = needed(retain.reference_logits, "total_variation", "the reference's logits").softmax(-1)
        return mean_over_answer(0.5 * (policy - reference.detach()).abs().sum(-1), retain.mask)
'''
# The contract of the new method, its own test, and the tests of all methods and retain terms.
TESTS = [
    "tests/methods/test_method_contract.py",
    "tests/methods/test_unlikelihood.py",
    "tests/retain/test_retain_terms.py",
    "tests/cli/test_catalogue.py",
    "tests/cli/test_main.py",
]
CHOSEN = "unlikelihood or total_variation or readme or every_method_and or first_recipe or narrow"


def examples() -> dict[str, str]:
    """Return the Python files of CONTRIBUTING.md by path."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a copy of the project with the new files and no other change."""
    root = tmp_path_factory.mktemp("project")
    for name in ("llm_forget", "tests", "recipes"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    for path, text in {**examples(), "llm_forget/retain/total_variation.py": RETAIN_TERM}.items():
        assert not (root / path).exists()
        (root / path).write_text(text, encoding="utf-8")
    return root


def run(root: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_has_a_method_and_its_test() -> None:
    assert list(examples()) == ["llm_forget/methods/unlikelihood.py", "tests/methods/test_unlikelihood.py"]
    assert len(examples()["llm_forget/methods/unlikelihood.py"].splitlines()) <= 60


@pytest.mark.slow
def test_the_new_files_pass_the_tests_of_all_methods_and_retain_terms(copy: Path) -> None:
    shown = run(copy, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "-vv", "-k", CHOSEN, *TESTS)
    passed = {line.split()[0].rpartition("::")[2] for line in shown.splitlines() if " PASSED" in line}
    for name in (
        "test_computed_by_hand",
        "test_works_under_bf16_autocast[unlikelihood]",
        "test_refuses_a_bad_hyper_parameter_by_name[nan-unlikelihood-epsilon]",
        "test_every_term_ignores_masked_tokens_and_gives_one_value_per_example[total_variation]",
        "test_the_rows_in_the_readme_are_what_the_command_prints",
        "test_every_method_and_wrapper_is_listed",
        "test_narrow_terminals_show_whole_method_names",
    ):
        assert name in passed, shown


@pytest.mark.slow
def test_the_commands_list_the_new_method(copy: Path) -> None:
    script = "import sys; sys.argv = ['llm-forget', 'methods', '--json']; from llm_forget.cli.main import main; main()"
    listed = {entry["name"]: entry for entry in json.loads(run(copy, "-c", script))["methods"]}
    assert listed["unlikelihood"]["recipe"] == ""
    assert listed["unlikelihood"]["retain"] == "nll"
    assert listed["unlikelihood"]["paper"] == "Welleck et al. 2020, arXiv:1908.04319"
    assert listed["npo"]["recipe"] == "recipes/demo/npo.yaml"
