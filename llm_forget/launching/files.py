"""The text of a job file for each tool. ``KINDS`` names them; the tests give each file to the tool's own parser."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from llm_forget.errors import UserError
from llm_forget.launching.job import MODULE, PORT, Job


@dataclass(frozen=True)
class Kind:
    """A kind of job file.

    Attributes:
        write: job → text.
        suffix: of the file.
        start: the command that starts it; {file} is the file.
    """

    write: Callable[[Job], str]
    suffix: str
    start: str


def torchrun(job: Job) -> str:
    """A shell script that starts torchrun; on several machines, once on each."""
    if not job.trains:
        raise UserError("torchrun starts ranks of one training; for a search take another kind, or --engine slurm")
    where = (
        ["--standalone"]
        if job.machines == 1
        else ["--nnodes", str(job.machines), "--rdzv-backend", "c10d", "--rdzv-id", job.name]
    )
    command = shlex.join(["torchrun", *where, "--nproc-per-node", str(job.processes)])
    if job.machines > 1:
        command += f' --rdzv-endpoint "$HEAD:{PORT}"'
    head = ': "${HEAD:?set it to the address of the first machine}"\n' if job.machines > 1 else ""
    told = f"# Run it on each of {job.machines} machines: HEAD=ADDRESS bash FILE\n" if job.machines > 1 else ""
    arguments = shlex.join(["--module", MODULE, *job.arguments])
    return f"#!/usr/bin/env bash\n{told}set -euo pipefail\n{head}exec {command} \\\n  {arguments}\n"


def submitit(job: Job) -> str:
    """A Python script that submits to Slurm; CLUSTER=local runs it on this machine."""
    cores = ["torchrun", "--standalone", "--nproc-per-node", str(job.processes), "--module", MODULE]
    if job.trains and job.machines > 1:
        raise UserError("submitit starts one machine of a training here; for several, use torchrun under srun")
    command = [*cores, *job.arguments] if job.trains and job.processes > 1 else ["llm-forget", *job.arguments]
    if command[0] == "llm-forget":
        command = ["PYTHON", "-m", MODULE, *job.arguments]
    shown = ", ".join("sys.executable" if one == "PYTHON" else repr(one) for one in command)
    gpus = f"    slurm_gpus_per_node={job.gpus},\n" if job.gpus else ""
    return f'''"""Submit {job.name} to Slurm: python FILE. CLUSTER=local runs it on this machine."""

import os
import sys

import submitit

executor = submitit.AutoExecutor(folder="jobs/{job.name}", cluster=os.environ.get("CLUSTER"))
executor.update_parameters(
    timeout_min={job.minutes},
    slurm_job_name={job.name!r},
{gpus})
command = submitit.helpers.CommandFunction([{shown}])
jobs = [executor.submit(command) for _ in range({1 if job.trains else job.machines})]
print(*(job.job_id for job in jobs), flush=True)
for job in jobs:
    job.result()  # raises what a job that failed has written last
'''


def ray(job: Job) -> str:
    """A Python script for ``ray job submit``."""
    if job.trains:
        return f'''"""Train on Ray: ray job submit --working-dir . -- python FILE"""

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work(_):
    from llm_forget.config import UnlearnRecipe
    from llm_forget.train.unlearn import unlearn
    from llm_forget.utils.build import load_recipe

    unlearn(load_recipe(UnlearnRecipe, {job.config!r}, {{"resume": "true"}}))


trainer = TorchTrainer(
    work,
    train_loop_config={{}},
    scaling_config=ScalingConfig(num_workers={job.machines * job.processes}, use_gpu={bool(job.gpus)}),
    run_config=RunConfig(name={job.name!r}, failure_config=FailureConfig(max_failures=3)),
)

if __name__ == "__main__":
    trainer.fit()
'''
    return f'''"""Workers of a search on Ray: ray job submit --working-dir . -- python FILE"""

import subprocess
import sys

import ray


@ray.remote(num_gpus={job.gpus}, max_retries=3)
def work():
    return subprocess.run([sys.executable, "-m", {MODULE!r}, *{job.arguments!r}]).returncode


if __name__ == "__main__":
    ray.init()
    print(ray.get([work.remote() for _ in range({job.machines})]))
'''


def skypilot(job: Job) -> str:
    """A task of SkyPilot."""
    run = shlex.join(["llm-forget", *job.arguments])
    if job.trains:
        run = (
            'torchrun --nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" \\\n'
            f"  --nproc-per-node {job.processes} --master-port {PORT} \\\n"
            '  --master-addr "$(echo "$SKYPILOT_NODE_IPS" | head -n 1)" \\\n'
            f"  {shlex.join(['--module', MODULE, *job.arguments])}"
        )
    resources: dict[str, Any] = {"accelerators": f"{job.gpu}:{job.gpus}"} if job.gpus else {"cpus": "8+"}
    return _yaml(
        f"sky launch -c {job.name} FILE",
        {
            "name": job.name,
            "num_nodes": job.machines,
            "resources": resources,
            "workdir": ".",
            "setup": "pip install 'llm-forget[all]'\n",
            "run": run + "\n",
        },
    )


def kubeflow(job: Job) -> str:
    """A TrainJob of Kubeflow Trainer. Its runtime ``torch-distributed`` gives torchrun its addresses and ranks."""
    command = ["torchrun", "--module", MODULE, *job.arguments] if job.trains else ["llm-forget", *job.arguments]
    trainer: dict[str, Any] = {
        "image": job.image,
        "numNodes": job.machines,
        "numProcPerNode": job.processes,
        "command": command,
    }
    if job.gpus:
        cards = {"nvidia.com/gpu": str(job.gpus)}  # a quantity of Kubernetes
        trainer["resourcesPerNode"] = {"limits": dict(cards), "requests": dict(cards)}
    return _yaml(
        "kubectl apply -f FILE",
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": job.name},
            "spec": {
                "runtimeRef": {"name": "torch-distributed"},
                "activeDeadlineSeconds": 60 * job.minutes,
                "trainer": trainer,
            },
        },
    )


def _yaml(start: str, values: Mapping[str, Any]) -> str:
    return f"# {start}\n" + yaml.dump(dict(values), Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=120)


class _Blocks(yaml.SafeDumper):
    """Texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Blocks.add_representer(str, _text)

KINDS: dict[str, Kind] = {
    "torchrun": Kind(torchrun, ".sh", "bash {file}"),
    "submitit": Kind(submitit, ".py", "python {file}"),
    "ray": Kind(ray, ".py", "ray job submit --working-dir . -- python {file}"),
    "skypilot": Kind(skypilot, ".yaml", "sky launch -c {name} {file}"),
    "kubeflow": Kind(kubeflow, ".yaml", "kubectl apply -f {file}"),
}


def job_file(kind: str, job: Job) -> str:
    """The text of a job file.

    Raises:
        UserError: the kind is unknown, or cannot start such a job.
    """
    if kind not in KINDS:
        raise UserError(f"{kind} is no kind of job file; give one of {', '.join(KINDS)}")
    return KINDS[kind].write(job)
