"""What a job's log says last, with real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOY = """
import os
import signal
import sys
import time

from worldtune.common.errors import WorldtuneError
from worldtune.common.script import run

rank, how = int(os.environ.get("RANK", "0")), sys.argv[1]


def main() -> None:
    if how == "both":
        raise WorldtuneError("config.yaml is wrong.")
    if how == "stop":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        open(f"ready{rank}", "w").close()
        time.sleep(100)
    if rank == 1 and how == "bug":
        raise ValueError("no such shape")
    if rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0 and how != "fine":
        time.sleep(100)


run(main)
"""


def command(folder: Path, *script: str) -> list[str]:
    (folder / "toy.py").write_text(TOY)
    launch = [str(ROOT / "src/scripts/launch.sh"), "--nodes", "1", "--processes-per-node", "2"]
    return ["bash", *launch, "--python", sys.executable, *script]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def launch(folder: Path, *script: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        command(folder, *script),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("how", "last"),
    [
        ("both", "error: config.yaml is wrong."),
        ("bug", "error: ValueError: no such shape"),
        ("killed", "was ended by SIGKILL; a kernel that is out of memory does so (`dmesg`)"),
    ],
)
def test_the_log_ends_with_the_reason(tmp_path: Path, how: str, last: str) -> None:
    code, lines = launch(tmp_path, "toy.py", how)
    assert code == 1
    assert lines[-1].endswith(last)
    assert sum("config.yaml is wrong" in line for line in lines) == (how == "both")
    # Of a bug one wants to see where it is; the launcher's own frames are of no use.
    tracebacks = [line for line in lines if line.startswith("Traceback")]
    assert len(tracebacks) == (how == "bug")


def test_a_job_that_ends_well_says_nothing(tmp_path: Path) -> None:
    code, lines = launch(tmp_path, "toy.py", "fine")
    assert code == 0
    assert not any("error" in line for line in lines)


def test_a_signal_reaches_the_processes(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "toy.py", "stop"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 50
    assert process.returncode == 1
    assert text.splitlines()[-1].startswith("error: stopped by SIGTERM")


def test_a_failing_training_job_names_what_is_missing_once(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    code, lines = launch(tmp_path, str(ROOT / "src/scripts/train.py"), "demo_edge_posttrain")
    assert code == 1
    assert lines[-1].startswith("error: datasets/synthetic/dataset.json does not exist")
    assert sum("does not exist" in line for line in lines) == 1
    assert not any(line.startswith("Traceback") for line in lines)
