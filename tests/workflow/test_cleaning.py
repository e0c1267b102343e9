import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_json
from worldtune.training.lease import Lease
from worldtune.workflow.cleaning import Removal, cheap_files, confirm, everything, old_attempts, remove
from worldtune.workflow.lock import WorkflowLock, unlock

ROOT = Path(__file__).parents[2]


def attempt(run: Path, name: str, started: int) -> Path:
    folder = run / "attempts" / name
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"0" * 1000)
    (folder / "launch_info.yaml").write_text("- {}\n")
    os.utime(folder / "launch_info.yaml", (started, started))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four attempts: the manifest's, one in work, one that nobody wants, the newest."""
    folder = tmp_path / "results/mine"
    for number, name in enumerate(("aaaa", "bbbb", "cccc", "dddd")):
        attempt(folder, name, started=1000 + number)
    write_json(folder / "manifest.json", {"attempt": "attempts/aaaa"})
    (folder / "model").mkdir()
    os.link(folder / "attempts/cccc/launch_info.yaml", folder / "model/README.md")
    return folder


def test_only_attempts_that_nobody_needs_go(run: Path, tmp_path: Path) -> None:
    lease = Lease(run / "attempts/bbbb")
    assert lease.try_acquire() is None
    removal = old_attempts(run)
    lease.release()
    assert removal.paths == (run / "attempts/cccc",)
    assert removal.num_bytes == 1000  # the other file has a second name
    assert "writes into it" in removal.describe()
    remove(removal, tmp_path)
    assert sorted(path.name for path in (run / "attempts").iterdir()) == ["aaaa", "bbbb", "dddd"]
    assert (run / "model/README.md").read_text() == "- {}\n"


def test_a_run_without_attempts_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldtuneError, match="misspelt has no attempts"):
        old_attempts(tmp_path / "results/misspelt")


def test_everything_leaves_the_folders_and_what_links_point_to(run: Path, tmp_path: Path) -> None:
    (tmp_path / "results/.gitkeep").touch()
    large = tmp_path / "large_disk"
    (large / "owner").mkdir(parents=True)
    (large / "owner/base.pt").write_bytes(b"1" * 500)
    (tmp_path / "checkpoints").symlink_to(large)
    (tmp_path / "datasets").mkdir()
    own = tmp_path / "own_videos"
    own.mkdir()
    (own / "a.mp4").write_bytes(b"2")
    (tmp_path / "datasets/linked").symlink_to(own)
    lease = Lease(run / "attempts/bbbb")
    assert lease.try_acquire() is None
    with pytest.raises(WorldtuneError, match=r"bbbb\. Stop that job first"):
        everything(tmp_path)
    lease.release()
    remove(everything(tmp_path), tmp_path)
    assert [path.name for path in (tmp_path / "results").iterdir()] == [".gitkeep"]
    assert list(large.iterdir()) == list((tmp_path / "datasets").iterdir()) == []
    assert (own / "a.mp4").exists()


@pytest.mark.parametrize("listed", [lambda root: old_attempts(root / "results/mine"), everything])
def test_a_job_that_has_started_since_the_question_keeps_its_attempt(
    run: Path, tmp_path: Path, listed: Callable[[Path], Removal]
) -> None:
    removal = listed(tmp_path)
    lease = Lease(run / "attempts/cccc")
    assert lease.try_acquire() is None
    with pytest.raises(WorldtuneError, match=r"process \d+ .* has begun to write into .*cccc"):
        remove(removal, tmp_path)
    lease.check()
    assert sorted(path.name for path in (run / "attempts").iterdir()) == ["aaaa", "bbbb", "cccc", "dddd"]
    lease.release()
    remove(removal, tmp_path)
    assert not (run / "attempts/cccc").exists()


def test_cheap_files_are_logs_and_caches(run: Path, tmp_path: Path) -> None:
    for name in ("logs/train", ".mypy_cache", "src/a/__pycache__", ".snakemake/log", ".snakemake/metadata"):
        (tmp_path / name).mkdir(parents=True)
    remove(cheap_files(tmp_path), tmp_path)
    for name in ("logs", ".mypy_cache", "src/a/__pycache__", ".snakemake/log"):
        assert not (tmp_path / name).exists(), name
    assert (tmp_path / ".snakemake/metadata").exists()
    assert (run / "manifest.json").exists()


def test_nothing_is_removed_beside_a_snakemake(run: Path, tmp_path: Path) -> None:
    lock = WorkflowLock(tmp_path / ".snakemake")
    lock.acquire()
    with pytest.raises(WorldtuneError, match="another snakemake works"):
        remove(old_attempts(run), tmp_path)
    assert (run / "attempts/cccc/weights").exists()


def test_a_lock_that_was_left_is_released_but_not_one_in_use(tmp_path: Path) -> None:
    assert "nothing is locked" in unlock(tmp_path)
    left = tmp_path / ".snakemake/locks/0.output.lock"
    left.parent.mkdir()
    left.write_text("results\n")
    lock = WorkflowLock(tmp_path / ".snakemake")
    lock.acquire()
    with pytest.raises(WorldtuneError, match="another snakemake works"):
        unlock(tmp_path)
    assert left.exists()
    del lock
    assert "removed 1" in unlock(tmp_path)
    assert not left.exists()


def test_only_yes_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer, expected in (("yes\n", True), ("y\n", False), ("\n", False)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert confirm("?", yes=False) is expected
    assert confirm("?", yes=True)


@pytest.mark.parametrize(("value", "told"), [("1", True), ("0", False), ("no", False), ("", False)])
def test_make_takes_1_for_yes_and_nothing_else(value: str, told: bool) -> None:
    for target in ("push", "prune", "reset"):
        command = ["make", "--dry-run", "-C", str(ROOT), target, f"YES={value}", f"PUBLIC={value}"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert ("--yes" in printed) is told, target
        assert ("--public" in printed) is (told and target == "push"), target


def test_without_a_terminal_the_script_removes_nothing_unless_told(run: Path, tmp_path: Path) -> None:
    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, ROOT / "src/scripts/clean.py", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    for arguments in (["everything"], ["attempts", "--run", "mine"]):
        refused = script(*arguments)
        assert refused.returncode == 1
        assert "Repeat it with YES=1" in refused.stderr
        assert "GB" in refused.stdout
    assert (run / "attempts/cccc/weights").exists()
    told = script("attempts", "--run", "mine", "--yes")
    assert told.returncode == 0, told.stderr
    assert not (run / "attempts/cccc").exists()
    assert (run / "attempts/aaaa/weights").exists()
