"""Training on a real SLURM that is cut off in every way that SLURM knows: how many steps are made twice.

How many is what launch_info.yaml of the attempt says. Checkpoints are further apart than a run is long, so each step
that no signal saves is lost.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from sandbox import NODES, Sandbox
from slurm_jobs import (
    Accounted,
    accounted,
    add_recipe,
    finish,
    last_job,
    launch_of,
    start,
    steps_logged,
    training_job,
    wait_for_steps,
    wait_until,
)
from workspace import Workspace

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.training.lease import LEASE_FILE

pytestmark = pytest.mark.slurm

# Not --signal=TERM --full, which reaches the srun in the batch script too: that one kills its step at once.
SIGNALS = (
    ("--signal=USR1",),
    ("--signal=TERM",),
    ("--signal=USR1", "--full"),
    ("--signal=USR1", "--batch"),
    ("--signal=TERM", "--batch"),
)


def trainings(sandbox: Sandbox, name: str, *, after: int) -> list[Accounted]:
    return [job for job in accounted(sandbox, name, after=after) if job.rule == "train"]


def assert_trained(workspace: Workspace, run: str, *, steps: int, starts: int, repeated: int = 0) -> None:
    """Require a finished model, each step once in the record, and what was lost on the way there."""
    launches = launch_of(workspace, run)
    print(f"{run}: starts at steps {[start['start_step'] for start in launches]},", end=" ")
    print(f"repeated steps {[start['repeated_steps'] for start in launches]}")
    assert list((workspace.root / "results" / run / "model").glob("*.safetensors"))
    assert steps_logged(workspace, run) == list(range(1, steps + 1))
    assert len(launches) == starts
    assert sum(start["repeated_steps"] for start in launches) == repeated


def test_a_cancelled_training_job_is_submitted_again_and_resumes(sandbox: Sandbox, workspace: Workspace) -> None:
    add_recipe(workspace, "cancelled", steps=30, save_every=1000)
    before = last_job(sandbox)
    process = start(workspace, "results/cancelled/model", "cancelled")
    job = training_job(process, workspace)
    wait_for_steps(process, workspace, "cancelled", 3)
    sandbox.client("scancel", job)
    output = finish(process, "cancelled", seconds=900)

    assert "Trying to restart job" in output
    states = [job.state.split()[0] for job in trainings(sandbox, "cancelled", after=before)]
    assert states == ["CANCELLED", "COMPLETED"]
    assert_trained(workspace, "cancelled", steps=30, starts=2)


@pytest.mark.slow
def test_no_signal_costs_a_step(sandbox: Sandbox, workspace: Workspace) -> None:
    add_recipe(workspace, "signalled", steps=80, save_every=1000)
    before = last_job(sandbox)
    process = start(workspace, "results/signalled/model", "signalled")
    signalled: list[str] = []
    for options in SIGNALS:
        signalled.append(training_job(process, workspace, other_than=signalled))
        wait_for_steps(process, workspace, "signalled", 3)
        sandbox.client("scancel", *options, signalled[-1])
    finish(process, "signalled", seconds=1800)
    jobs = trainings(sandbox, "signalled", after=before)

    assert [job.job for job in jobs[:-1]] == signalled
    print([(job.job, job.state) for job in jobs])
    assert [job.state == "COMPLETED" for job in jobs] == [False] * len(SIGNALS) + [True]
    assert_trained(workspace, "signalled", steps=80, starts=len(SIGNALS) + 1)


@pytest.mark.slow
def test_a_time_limit_costs_no_step(sandbox: Sandbox, workspace: Workspace) -> None:
    """SLURM looks at time limits each 30 s or so, and may warn a minute early."""
    add_recipe(workspace, "limited", steps=240, save_every=1000, runtime_minutes=3, save_seconds=60)
    before = last_job(sandbox)
    finish(start(workspace, "results/limited/model", "limited"), "limited", seconds=1800)
    trains = trainings(sandbox, "limited", after=before)

    assert len(trains) > 1, "the run was to be longer than the limit"
    assert [job.state.split()[0] for job in trains[:-1]] == ["FAILED"] * (len(trains) - 1)
    assert trains[-1].state == "COMPLETED"
    assert_trained(workspace, "limited", steps=240, starts=len(trains))


@contextmanager
def gpu_partition(workspace: Workspace, partition: str) -> Iterator[None]:
    """Submit GPU jobs to a partition meanwhile."""
    path = workspace.root / "config/config.yaml"
    text = path.read_text()
    config = yaml.safe_load(text)
    config["cluster"]["partitions"]["gpu"] = partition
    path.write_text(yaml.safe_dump(config))
    try:
        yield
    finally:
        path.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("partition", "states"),
    [
        # The job saves and ends within the partition's grace time; snakemake submits it again.
        ("graced", ["FAILED", "COMPLETED"]),
        # It saves within KillWait; SLURM puts it back into its queue, and snakemake waits.
        ("requeued", ["PREEMPTED", "COMPLETED"]),
    ],
)
def test_a_preemption_costs_no_step(sandbox: Sandbox, workspace: Workspace, partition: str, states: list[str]) -> None:
    add_recipe(workspace, partition, steps=40, save_every=1000)
    before = last_job(sandbox)
    with gpu_partition(workspace, partition):
        process = start(workspace, f"results/{partition}/model", partition)
        first = training_job(process, workspace)
        wait_for_steps(process, workspace, partition, 3)
        everything = (f"--nodes={NODES}", "--gres=gpu:8", "--mem=1000", "--output=/dev/null", "--parsable")
        urgent = sandbox.client("sbatch", "--partition=gpu", *everything, "--wrap=sleep 20")
        wait_until(
            "the urgent job runs",
            lambda: (
                sandbox.client("squeue", "-h", "--states=all", "-j", urgent, "-o", "%T") in ("RUNNING", "COMPLETED")
            ),
            process,
        )
        finish(process, partition, seconds=1800)
    jobs = trainings(sandbox, partition, after=before)

    print([(job.job, job.state) for job in jobs])
    assert [job.state for job in jobs] == states
    assert (jobs[0].job, jobs[1].job == first) == (first, partition == "requeued")
    assert_trained(workspace, partition, steps=40, starts=2)


class HolderHistory:
    """Looks who holds a run's lease, many times a second, and remembers the order."""

    def __init__(self, folder: Path) -> None:
        self.jobs: list[str] = []
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "HolderHistory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            for path in self._folder.glob(f"attempts/*/{LEASE_FILE}"):
                # It may be gone by now.
                with suppress(WorldtuneError):
                    job = read_json(path)["slurm_job_id"]
                    if self.jobs[-1:] != [job]:
                        self.jobs.append(job)


@pytest.mark.slow
@pytest.mark.parametrize("is_cut", [False, True])
def test_after_a_killed_snakemake_the_same_command_goes_on_with_one_writer(
    sandbox: Sandbox, workspace: Workspace, is_cut: bool
) -> None:
    run = "cut_after_the_kill" if is_cut else "left_alone"
    # The first job is to live until the second has started.
    add_recipe(workspace, run, steps=120, save_every=1000)
    before = last_job(sandbox)
    log = workspace.root / f"logs/train/{run}.log"
    with HolderHistory(workspace.root / "results" / run) as history:
        process = start(workspace, f"results/{run}/model", f"{run}.killed")
        first = training_job(process, workspace)
        wait_for_steps(process, workspace, run, 3)
        process.kill()
        process.wait()
        process = start(workspace, f"results/{run}/model", run)
        second = training_job(process, workspace, other_than=[first])
        wait_until("the second job waits", lambda: log.exists() and "waiting: " in log.read_text(), process)
        if is_cut:
            sandbox.client("scancel", first)
        finish(process, run, seconds=1800)
    jobs = trainings(sandbox, run, after=before)

    print([(job.job, job.state) for job in jobs])
    assert {job.job: job.state.split()[0] for job in jobs} == {
        first: "CANCELLED" if is_cut else "COMPLETED",
        second: "COMPLETED",
    }
    assert history.jobs == [first, second]
    assert_trained(workspace, run, steps=120, starts=2 if is_cut else 1)
