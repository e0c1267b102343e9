"""What the tests on SLURM share: recipes, snakemake as a person starts it, what queue, accounting and attempts say.

What SLURM says of the jobs is kept in logs/test_slurm/ of this repository.
"""

import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from sandbox import Sandbox
from workspace import REPOSITORY, Workspace

from worldtune.training.metrics import METRICS_FILE, read_rows
from worldtune.workflow.queue import QueuedJob, queued_jobs, table

RECORD = REPOSITORY / "logs/test_slurm"
SHORT = """
extends = "demo_edge_posttrain"

[training]
max_iter = {steps}
micro_batch_size = 1
gradient_accumulation = {accumulation}

[parallel]
tensor = {tensor}
data = {data}

[validation]
sigmas = [1.0]
max_clips = 1

[sampling]
num_steps = 2
num_clips = 1

[previews]
num_steps = 2
num_clips = 1

[saving]
every = {save_every}

[cluster]
gpus_per_node = {gpus_per_node}
runtime_minutes = {runtime_minutes}
save_seconds = {save_seconds}
"""
FIELDS = ("jobid", "comment", "partition", "account", "state", "timelimitraw", "reqmem", "alloctres", "nnodes")


@dataclass(frozen=True)
class Accounted:
    """One job as the accounting has it."""

    job: str
    comment: str
    partition: str
    account: str
    state: str
    minutes: str
    memory: str
    resources: dict[str, str]
    nodes: str

    @property
    def rule(self) -> str:
        return self.comment.removeprefix("rule_").partition("_wildcards_")[0]


def add_recipe(workspace: Workspace, name: str, **values: int) -> None:
    defaults = {"steps": 3, "accumulation": 2, "tensor": 2, "data": 1, "save_every": 3, "gpus_per_node": 8}
    defaults |= {"runtime_minutes": 37, "save_seconds": 60}
    path = workspace.root / f"config/recipes/{name}.toml"
    path.write_text(SHORT.format(**(defaults | values)))


def start(workspace: Workspace, target: str, name: str) -> subprocess.Popen[str]:
    """Start what a person would type; its output goes to logs/test_slurm/NAME.snakemake.log."""
    command = [*workspace.command("--profile", "slurm", "--", target)]
    cores = command.index("--cores")
    del command[cores : cores + 2]
    RECORD.mkdir(parents=True, exist_ok=True)
    with open(_log(name), "w") as log:
        return subprocess.Popen(
            command, cwd=workspace.root, env=workspace.environment(), stdout=log, stderr=subprocess.STDOUT, text=True
        )


def finish(process: subprocess.Popen[str], name: str, seconds: float) -> str:
    """Wait for snakemake, require success, and return its output."""
    try:
        process.wait(timeout=seconds)
    finally:
        if process.poll() is None:
            process.kill()
    output = _log(name).read_text()
    assert process.returncode == 0, output[-6000:]
    return output


def _log(name: str) -> Path:
    return RECORD / f"{name}.snakemake.log"


def wait_until(what: str, ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 900) -> None:
    """Wait for something that a running snakemake brings about."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, f"snakemake ended before {what}"
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(0.2)


def training_job(process: subprocess.Popen[str], workspace: Workspace, *, other_than: Collection[str] = ()) -> str:
    """Wait for a training job that runs, and return its number."""
    found: list[str] = []

    def ready() -> bool:
        found[:] = [
            job.fields["job"]
            for job in queued_jobs(workspace.root)
            if job.rule == "train" and job.fields["state"] == "RUNNING" and job.fields["job"] not in other_than
        ]
        return bool(found)

    wait_until("training runs", ready, process)
    return found[0]


def attempt_of(workspace: Workspace, run: str) -> Path:
    """Return the folder of a run's only attempt."""
    (attempt,) = (workspace.root / "results" / run / "attempts").iterdir()
    return attempt


def steps_logged(workspace: Workspace, run: str) -> list[int]:
    """Return the steps in the record of a run, in its order; empty before its first one."""
    if not (workspace.root / "results" / run / "attempts").exists():
        return []
    return [row["step"] for row in read_rows(attempt_of(workspace, run) / METRICS_FILE)]


def wait_for_steps(process: subprocess.Popen[str], workspace: Workspace, run: str, count: int) -> None:
    """Wait until a run has made so many more steps."""
    before = len(steps_logged(workspace, run))
    wait_until(f"{count} more steps", lambda: len(steps_logged(workspace, run)) >= before + count, process)


def watch(process: subprocess.Popen[str], workspace: Workspace, name: str, seconds: float) -> list[QueuedJob]:
    """Look at the queue until snakemake ends or training has been seen running; keep the last table with training."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        jobs = queued_jobs(workspace.root)
        if any(job.rule == "train" and job.fields["state"] == "RUNNING" for job in jobs):
            RECORD.mkdir(parents=True, exist_ok=True)
            (RECORD / f"{name}.squeue.txt").write_text(table(jobs) + "\n")
            return jobs
        time.sleep(0.5)
    return []


def accounted(sandbox: Sandbox, name: str, *, after: int = 0) -> list[Accounted]:
    """Return all jobs since job `after`, once the accounting has their ends; a requeued one is there each time."""
    deadline = time.monotonic() + 60
    while True:
        text = sandbox.client(
            "sacct", "-X", "--duplicates", "--noheader", "--parsable2", f"--format={','.join(FIELDS)}"
        )
        rows = [line.split("|") for line in text.splitlines()]
        jobs = [
            Accounted(*row[:7], dict(part.split("=", 1) for part in row[7].split(",") if part), row[8])
            for row in rows
            if int(row[0]) > after
        ]
        if jobs and all(job.state not in ("PENDING", "RUNNING") for job in jobs):
            heading = "|".join(FIELDS)
            RECORD.mkdir(parents=True, exist_ok=True)
            (RECORD / f"{name}.sacct.txt").write_text("\n".join([heading, *map("|".join, rows)]) + "\n")
            return jobs
        assert time.monotonic() < deadline, f"the accounting does not have the ends of all jobs:\n{text}"
        time.sleep(1)


def last_job(sandbox: Sandbox) -> int:
    """Return the number of the newest job, 0 where there is none."""
    return max((int(job) for job in sandbox.client("squeue", "-h", "--states=all", "-o", "%i").split()), default=0)


def launch_of(workspace: Workspace, run: str) -> list[dict[str, Any]]:
    """Return the starts that the attempt of `run` has noted."""
    return list(yaml.safe_load((attempt_of(workspace, run) / "launch_info.yaml").read_text()))
