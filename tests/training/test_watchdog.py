"""A rank that stops arriving is named, and the job ends; real processes, started as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worldtune.training.metrics import read_rows

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


@pytest.mark.parametrize(
    ("how", "missing", "waiting"),
    [
        (
            "loader",
            "rank 1 is in data of step 3: __getitem__ (training/hanging_run.py:",
            "rank 0 waits in all_reduce (worldtune/training/trainer.py:",
        ),
        (
            "skip",
            "rank 1 waits elsewhere, in all_reduce (worldtune/training/trainer.py:",
            "rank 0 waits in all_reduce (worldtune/training/trainer.py:",
        ),
        (
            "stopped",
            "does not answer, so it is stopped or stuck outside Python; last seen in ",
            "rank 0 waits in all_reduce (worldtune/training/trainer.py:",
        ),
    ],
)
def test_the_rank_that_does_not_arrive_is_named_and_a_retry_goes_on(
    tmp_path: Path, how: str, missing: str, waiting: str
) -> None:
    code, lines = train(tmp_path, how)
    assert code == 1, lines
    (last,) = [line for line in lines if line.startswith("error: ")]
    assert lines[-1] == last
    assert missing in last, last
    assert waiting in last, last
    attempt = attempt_of(tmp_path)
    record = json.loads((attempt / "hang.json").read_text())
    assert record["missing"] == [1]
    assert last == f"error: {record['message']}"
    assert [place["rank"] for place in record["ranks"]] == [0, 1]
    assert not (attempt / "fatal.json").exists()
    code, lines = train(tmp_path, "fine")
    assert code == 0, lines
    assert [row["step"] for row in read_rows(attempt / "metrics.jsonl")] == list(range(1, 9))


def test_a_long_phase_that_goes_on_is_no_hang(tmp_path: Path) -> None:
    code, lines = train(tmp_path, "long")
    assert code == 0, lines
    assert not (attempt_of(tmp_path) / "hang.json").exists()
