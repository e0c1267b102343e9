"""The real graph on a real SLURM: two nodes, eight pretended GPUs each, started and stopped here.

What SLURM says of the jobs is kept in logs/test_slurm/ of this repository.
"""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from sandbox import NODES, Sandbox
from workspace import REPOSITORY, Workspace

from worldtune.common.files import read_json
from worldtune.recipe.load import load_recipe
from worldtune.training.metrics import METRICS_FILE, read_rows
from worldtune.workflow.queue import QueuedJob, queued_jobs, table

pytestmark = pytest.mark.slurm

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
RULES = {
    *("make_demo_checkpoints", "split_checkpoint", "load_report", "dataset_report"),
    *("render_synthetic", "ingest", "captions", "t5", "controls", "validate"),
    *("train", "export"),
}
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


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    # Sockets have short path limits, so this is no folder of pytest's.
    with TemporaryDirectory(prefix="worldtune-slurm-") as folder:
        started = Sandbox(Path(folder))
        started.start()
        try:
            yield started
        finally:
            started.stop()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The repository with a small dataset, and with the names of the sandbox's account and partitions."""
    workspace = Workspace(tmp_path_factory.mktemp("slurm"))
    path = workspace.root / "config/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["datasets"]["synthetic"] |= {"num_clips": 8, "num_shards": 1, "min_clips": 4, "controls": ["edge"]}
    config["cluster"] |= {"account": "sandbox", "partitions": {"cpu": "cpu", "gpu": "gpu", "network": None}}
    path.write_text(yaml.safe_dump(config))
    workspace.shorten_base_training()
    return workspace


def add_recipe(workspace: Workspace, name: str, **values: int) -> None:
    defaults = {"steps": 3, "accumulation": 2, "tensor": 2, "data": 1, "save_every": 3, "gpus_per_node": 8}
    defaults |= {"runtime_minutes": 37, "save_seconds": 60}
    path = workspace.root / f"config/recipes/{name}.toml"
    path.write_text(SHORT.format(**(defaults | values)))


def start(workspace: Workspace, target: str) -> subprocess.Popen[str]:
    """Start what a person would type."""
    command = [*workspace.command("--profile", "slurm", "--", target)]
    cores = command.index("--cores")
    del command[cores : cores + 2]
    return subprocess.Popen(
        command,
        cwd=workspace.root,
        env=workspace.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], name: str, seconds: float) -> str:
    """Wait for snakemake, keep its output, and require success."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            process.kill()
    RECORD.mkdir(parents=True, exist_ok=True)
    (RECORD / f"{name}.snakemake.log").write_text(output)
    assert process.returncode == 0, output[-6000:]
    return output


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
    """Return all jobs since job `after`, once the accounting has their ends."""
    deadline = time.monotonic() + 60
    while True:
        text = sandbox.client("sacct", "-X", "--noheader", "--parsable2", f"--format={','.join(FIELDS)}")
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


def tasks_of_step(sandbox: Sandbox, job: str) -> str:
    """Return tasks and nodes of a job's first step."""
    return sandbox.client("sacct", "-j", f"{job}.0", "--noheader", "--parsable2", "--format=ntasks,nnodes")


def launch_of(workspace: Workspace, run: str) -> list[dict[str, object]]:
    """Return the starts that the attempt of `run` has noted."""
    results = workspace.root / "results" / run
    attempt = results / read_json(results / "manifest.json")["attempt"]
    return list(yaml.safe_load((attempt / "launch_info.yaml").read_text()))


def test_the_pipeline_runs_on_a_node_with_eight_gpus(sandbox: Sandbox, workspace: Workspace) -> None:
    add_recipe(workspace, "on_one_node", tensor=8)
    process = start(workspace, "results/on_one_node/model")
    queue = watch(process, workspace, "one_node", seconds=900)
    output = finish(process, "one_node", seconds=900)
    jobs = accounted(sandbox, "one_node")

    assert list((workspace.root / "results/on_one_node/model").glob("*.safetensors")), output[-3000:]
    assert [job.fields["gpus"] for job in queue if job.rule == "train"] == ["gres:gpu:8"]
    assert {job.rule for job in jobs} == RULES
    for job in jobs:
        assert job.state == "COMPLETED", job
        assert job.partition == ("gpu" if job.rule in ("train", "t5") else "cpu"), job
        assert job.account == "sandbox", job
        assert job.minutes.isdigit(), job
        assert job.memory.endswith("M") or job.memory.endswith("G"), job
        assert ("gres/gpu" in job.resources) == (job.rule == "train"), job
    (train,) = [job for job in jobs if job.rule == "train"]
    recipe = load_recipe("on_one_node", root=workspace.root)
    assert train.comment == "rule_train_wildcards_on_one_node"
    assert (train.minutes, train.nodes) == ("37", "1")
    assert (train.resources["gres/gpu"], train.resources["cpu"]) == ("8", str(8 * recipe.cluster.cpus_per_gpu))
    assert tasks_of_step(sandbox, train.job) == "1|1"
    (launch,) = launch_of(workspace, "on_one_node")
    assert launch["world_size"] == 8
    logs = workspace.root / "logs/slurm"
    assert {path.parent.parent.name for path in logs.glob("*/*/*.log")} >= {"rule_train"}, (
        "the profile keeps SLURM's logs"
    )


def test_training_spans_two_nodes(sandbox: Sandbox, workspace: Workspace) -> None:
    add_recipe(workspace, "on_two_nodes", tensor=2, data=2, accumulation=1, gpus_per_node=2)
    before = last_job(sandbox)
    process = start(workspace, "results/on_two_nodes/manifest.json")
    queue = watch(process, workspace, "two_nodes", seconds=600)
    finish(process, "two_nodes", seconds=600)
    jobs = accounted(sandbox, "two_nodes", after=before)

    assert [job.fields["nodes"] for job in queue if job.rule == "train"] == [str(NODES)]
    (train,) = [job for job in jobs if job.rule == "train"]
    assert (train.state, train.nodes, train.resources["gres/gpu"]) == ("COMPLETED", "2", "4")
    assert tasks_of_step(sandbox, train.job) == "2|2"
    (launch,) = launch_of(workspace, "on_two_nodes")
    assert launch["world_size"] == 4


def test_a_cancelled_training_job_is_submitted_again_and_resumes(sandbox: Sandbox, workspace: Workspace) -> None:
    add_recipe(workspace, "cancelled", steps=60, save_every=50)
    before = last_job(sandbox)
    process = start(workspace, "results/cancelled/manifest.json")
    attempts = workspace.root / "results/cancelled/attempts"
    (job,) = [job for job in watch(process, workspace, "cancelled", seconds=600) if job.rule == "train"]
    while not any(path.read_text().count("\n") >= 3 for path in attempts.glob("*/metrics.jsonl")):
        assert process.poll() is None, "snakemake ended before training was cancelled"
        time.sleep(0.2)
    sandbox.client("scancel", job.fields["job"])
    output = finish(process, "cancelled", seconds=900)
    trains = [job for job in accounted(sandbox, "cancelled", after=before) if job.rule == "train"]

    assert "Trying to restart job" in output
    assert [job.state.split()[0] for job in trains] == ["CANCELLED", "COMPLETED"]
    assert len(launch_of(workspace, "cancelled")) == 2
    # Nothing was repeated after the signal, nothing was left out.
    assert steps_logged(workspace, "cancelled") == list(range(1, 61))


def steps_logged(workspace: Workspace, run: str) -> list[int]:
    results = workspace.root / "results" / run
    attempt = results / read_json(results / "manifest.json")["attempt"]
    return [row["step"] for row in read_rows(attempt / METRICS_FILE)]


@pytest.mark.slow
def test_a_time_limit_costs_no_step(sandbox: Sandbox, workspace: Workspace) -> None:
    """SLURM looks at time limits each 30 s or so, and may warn a minute early."""
    add_recipe(workspace, "limited", steps=240, save_every=1000, runtime_minutes=3, save_seconds=60)
    before = last_job(sandbox)
    finish(start(workspace, "results/limited/manifest.json"), "limited", seconds=1200)
    trains = [job for job in accounted(sandbox, "limited", after=before) if job.rule == "train"]

    assert len(trains) > 1, "the run was to be longer than the limit"
    assert [job.state.split()[0] for job in trains[:-1]] == ["FAILED"] * (len(trains) - 1)
    assert trains[-1].state == "COMPLETED"
    assert steps_logged(workspace, "limited") == list(range(1, 241))
