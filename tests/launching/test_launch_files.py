"""Each job file is given to the parser of its own tool; a tool that is not installed is skipped."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.errors import UserError
from llm_forget.launching.files import KINDS, job_file
from llm_forget.launching.job import Job

TRAIN, SEARCH = Job(config="mine.yaml", machines=2, gpus=4), Job(search="/shared/search", machines=3, gpus=1)


@pytest.mark.parametrize("job", [TRAIN, Job(config="a b.yaml", gpus=0)])
def test_torchrun_reads_its_script(job: Job, tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    file = tmp_path / "job.sh"
    file.write_text(job_file("torchrun", job))
    assert subprocess.run(["bash", "-n", file], check=False).returncode == 0
    shown = tmp_path / "torchrun"
    shown.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    shown.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HEAD": "10.0.0.1"}
    done = subprocess.run(["bash", file], env=environment, capture_output=True, text=True, check=True)
    given = get_args_parser().parse_args(done.stdout.splitlines())
    assert (given.nnodes, given.nproc_per_node) == (("2", "4") if job is TRAIN else ("1:1", "1"))
    assert (given.module, given.training_script) == (True, "llm_forget.cli")
    assert given.training_script_args == ["unlearn", "--config", job.config, "--resume", "true"]


@pytest.mark.parametrize("job", [TRAIN, SEARCH])
def test_kubeflow_reads_its_train_job(job: Job) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    values = yaml.safe_load(job_file("kubeflow", job))
    read = models.TrainerV1alpha1TrainJob.from_dict(values)
    assert read.spec.trainer.num_nodes == job.machines
    assert read.spec.trainer.num_proc_per_node == (4 if job.trains else 1)
    assert _leaves(read.to_dict()) == _leaves(values), "no field is unknown to its models"


@pytest.mark.parametrize("job", [TRAIN, SEARCH, Job(config="mine.yaml", gpus=0)])
def test_skypilot_reads_its_task(job: Job, tmp_path: Path) -> None:
    sky = pytest.importorskip("sky", reason="pip install skypilot")
    (tmp_path / "job.yaml").write_text(job_file("skypilot", job))
    task = sky.Task.from_yaml(str(tmp_path / "job.yaml"))
    assert (task.name, task.num_nodes) == ("forget", job.machines)
    (tmp_path / "run.sh").write_text(task.run)
    assert subprocess.run(["bash", "-n", tmp_path / "run.sh"], check=False).returncode == 0


@pytest.mark.parametrize("job", [TRAIN, SEARCH])
def test_ray_reads_its_script(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'ray[train]'")
    file = tmp_path / "job.py"
    file.write_text(job_file("ray", job))
    made: dict[str, Any] = runpy.run_path(str(file))  # Ray checks its configurations as they are made
    if job.trains:
        assert made["trainer"].scaling_config.num_workers == 8
    else:
        assert made["work"]._default_options["num_gpus"] == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].suffix == ".py"])
@pytest.mark.parametrize("job", [Job(config="it's.yaml"), SEARCH])
def test_scripts_are_python(kind: str, job: Job) -> None:
    compile(job_file(kind, job), kind, "exec")


def test_what_no_tool_can_start_is_refused() -> None:
    with pytest.raises(UserError, match="one of --config and --search"):
        Job()
    with pytest.raises(UserError, match="small letters"):
        Job(config="a", name="A job")
    with pytest.raises(UserError, match="starts ranks of one training"):
        job_file("torchrun", SEARCH)
    with pytest.raises(UserError, match="torchrun, submitit, ray"):
        job_file("condor", TRAIN)


def test_the_command_writes_a_file_and_says_how_to_start_it(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    shown = CliRunner().invoke(app, ["launch-file", "skypilot", str(file), "--config", "mine.yaml"])
    assert shown.exit_code == 0, shown.output
    assert f"sky launch -c forget {file}" in shown.output
    assert yaml.safe_load(file.read_text())["num_nodes"] == 1


@pytest.mark.slow
def test_submitit_runs_a_training_on_this_machine(memorised_folder: Path, tmp_path: Path) -> None:
    """The written script with submitit's local executor: the run folder is there, and a failure is told."""
    pytest.importorskip("submitit", reason="pip install 'llm-forget[slurm]'")
    recipe = {
        "model": {"name": str(memorised_folder / "model")},
        "data": {"forget": {"path": str(memorised_folder / "forget.jsonl")}},
        "method": {"name": "grad_ascent"},
        "retain": {"name": None},
        "train": {"epochs": 1},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "job.py").write_text(job_file("submitit", Job(config="mine.yaml", gpus=0)))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "CLUSTER": "local", "PYTHONPATH": root}
    run = [sys.executable, "job.py"]
    subprocess.run(run, cwd=tmp_path, env=environment, check=True, timeout=240)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["method"] == "grad_ascent"


def _leaves(value: Any) -> list[tuple[str, str]]:
    """Every value with its path, in order."""
    if isinstance(value, dict):
        return sorted((f"{key}.{path}", leaf) for key, one in value.items() for path, leaf in _leaves(one))
    if isinstance(value, list):
        return [(f"{place}{path}", leaf) for place, one in enumerate(value) for path, leaf in _leaves(one)]
    return [("", str(value))]


def test_paths_with_spaces_stay_whole() -> None:
    text = job_file("torchrun", Job(config="my recipes/a.yaml", gpus=2))
    assert "'my recipes/a.yaml'" in text
    assert shlex.split(text.split("\n", 2)[2].replace("\\\n", " "))[-1] == "true"
