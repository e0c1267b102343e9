"""A rank that stops arriving is named, and the job ends; real processes, started as a user starts them."""

import bdb
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from worldtune.parallel.mesh import sample_group
from worldtune.training.metrics import read_rows
from worldtune.training.watchdog import set_collective_timeouts
from worldtune.training.whereabouts import Whereabouts, look

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent


def train(folder: Path, how: str) -> tuple[int, list[str]]:
    """Run tests/training/hanging_run.py on two ranks; returns the exit code and the lines of the log."""
    command = ["bash", str(ROOT / "src/scripts/launch.sh"), "--nodes", "1", "--processes-per-node", "2"]
    command += ["--python", sys.executable, str(TESTS / "hanging_run.py"), str(folder), how]
    path = os.pathsep.join([str(ROOT / "src"), str(TESTS)])
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def attempt_of(folder: Path) -> Path:
    (attempt,) = (folder / "attempts").iterdir()
    return attempt


def hang(folder: Path, how: str, missing: str, waiting: str) -> Path:
    """Require that a run hangs, ends, and says last which rank is missing and where the other waits."""
    code, lines = train(folder, how)
    assert code == 1, lines
    assert lines[-1].startswith("error: no process has made progress for "), lines
    assert missing in lines[-1]
    assert waiting in lines[-1]
    attempt = attempt_of(folder)
    record = json.loads((attempt / "hang.json").read_text())
    assert record["missing"] == [1]
    assert lines[-1] == f"error: {record['message']}"
    assert [place["rank"] for place in record["ranks"]] == [0, 1]
    return attempt


def test_a_rank_that_hangs_in_its_loader_is_named_and_a_retry_goes_on(tmp_path: Path) -> None:
    missing = "rank 1 is in data of step 3: __getitem__ (training/hanging_run.py:"
    attempt = hang(tmp_path, "loader", missing, "rank 0 waits in all_reduce (worldtune/training/")
    assert not (attempt / "fatal.json").exists()
    code, lines = train(tmp_path, "fine")
    assert code == 0, lines
    assert [row["step"] for row in read_rows(attempt / "metrics.jsonl")] == list(range(1, 9))


def test_a_rank_that_left_out_a_collective_is_named(tmp_path: Path) -> None:
    missing = "rank 1 waits elsewhere, in all_reduce (worldtune/training/"
    hang(tmp_path, "skip", missing, "rank 0 waits in all_reduce (worldtune/training/trainer.py:")


@pytest.mark.slow
def test_a_rank_whose_process_stands_still_is_named(tmp_path: Path) -> None:
    missing = "does not answer, so it is stopped or stuck outside Python; last seen in "
    hang(tmp_path, "stopped", missing, "rank 0 waits in all_reduce (worldtune/training/")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["long", "suspended"])
def test_what_takes_long_but_goes_on_is_no_hang(tmp_path: Path, how: str) -> None:
    """A slow first step, a measurement of one rank that the other waits for; a job that SLURM suspends as a whole."""
    code, lines = train(tmp_path, how)
    assert code == 0, lines
    assert not (attempt_of(tmp_path) / "hang.json").exists()


def look_from_a_thread() -> Whereabouts:
    with ThreadPoolExecutor() as pool:
        return pool.submit(look, rank=0, beat=1, idle_s=1.0, is_overdue=True, in_detail=True).result()


def test_a_process_in_a_debugger_is_known() -> None:
    assert not look_from_a_thread().is_debugged
    assert bdb.Bdb().runcall(look_from_a_thread).is_debugged


def test_no_collective_ends_before_the_watchdog_has_spoken(single_mesh: DeviceMesh) -> None:
    groups = [dist.group.WORLD, sample_group(single_mesh)]
    set_collective_timeouts(1000.0)
    for group in groups:
        assert group._get_backend(torch.device("cpu")).options._timeout.total_seconds() > 4 * 1000
