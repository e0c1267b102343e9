import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import worldtune.training.lease as lease_module
from worldtune.training.errors import TemporaryError
from worldtune.training.lease import Lease, kept_free

HOLDER = """
import sys, time
from pathlib import Path
from worldtune.training.lease import Lease
assert Lease(Path(sys.argv[1])).try_acquire() is None
print("held", flush=True)
time.sleep(60)
"""


def test_taken_over_at_once_from_a_killed_process(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    lease = Lease(tmp_path)
    holder = lease.try_acquire()
    assert holder is not None
    assert str(process.pid) in holder
    process.kill()
    process.wait()
    assert lease.try_acquire() is None
    lease.check()
    lease.release()
    assert not (tmp_path / "lease.json").exists()


def test_other_host_is_trusted_until_its_heartbeat_has_not_changed_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Lease(tmp_path, heartbeat_s=60)
    assert first.try_acquire() is None
    path = tmp_path / "lease.json"
    record = json.loads(path.read_text())
    record |= {"host": "elsewhere", "pid": 1, "slurm_job_id": "77"}
    now = 0.0
    monkeypatch.setattr(lease_module, "time", SimpleNamespace(time=time.time, monotonic=lambda: now))
    second = Lease(tmp_path, heartbeat_s=60)
    # The other host's clock may be far behind or ahead of this one's: only a change says that the holder lives.
    for heartbeat in (0.0, 1e12, 5.0):
        path.write_text(json.dumps(record | {"heartbeat": heartbeat}))
        assert second.try_acquire() == "process 1 on elsewhere, SLURM job 77"
        now += 59
        assert second.try_acquire() == "process 1 on elsewhere, SLURM job 77"
    now += 2
    assert second.try_acquire() is None
    with pytest.raises(TemporaryError, match=str(os.getpid())):
        first.check()
    first.release()
    second.check()
    second.release()


@pytest.mark.parametrize("other", [{"boot": "of another machine"}, {"host": "elsewhere"}])
def test_a_host_of_the_same_name_is_another_one(tmp_path: Path, other: dict[str, str]) -> None:
    first = Lease(tmp_path, heartbeat_s=60)
    assert first.try_acquire() is None
    path = tmp_path / "lease.json"
    # A process of the other host, of which nothing can be seen here.
    path.write_text(json.dumps(json.loads(path.read_text()) | other | {"pid": 2**22 + 1}))
    assert Lease(tmp_path).try_acquire() is not None
    first.check()
    first.release()


def test_without_proc_the_heartbeat_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_process_start", lambda _pid: None)
    killed = Lease(tmp_path, heartbeat_s=60)
    assert killed.try_acquire() is None
    now = 0.0
    monkeypatch.setattr(lease_module, "time", SimpleNamespace(time=time.time, monotonic=lambda: now))
    second = Lease(tmp_path, heartbeat_s=60)
    assert second.try_acquire() is not None
    now += 61
    assert second.try_acquire() is None
    second.release()
    killed.release()


def test_a_folder_that_is_kept_free_is_taken_only_afterwards(tmp_path: Path) -> None:
    folder, lease = tmp_path / "attempt", Lease(tmp_path / "attempt")
    folder.mkdir()
    taker = threading.Thread(target=lease.try_acquire, daemon=True)
    with kept_free(folder) as holder:
        assert holder is None
        taker.start()
        taker.join(0.2)
        assert taker.is_alive()
        folder.rename(tmp_path / "removed")
    taker.join(10)
    lease.check()
    with kept_free(folder) as holder:
        assert holder is not None
        assert str(os.getpid()) in holder
    lease.release()


def test_heartbeat_goes_on(tmp_path: Path) -> None:
    lease = Lease(tmp_path, heartbeat_s=0.02)
    assert lease.try_acquire() is None
    before = json.loads((tmp_path / "lease.json").read_text())["heartbeat"]
    deadline = time.monotonic() + 10
    while json.loads((tmp_path / "lease.json").read_text())["heartbeat"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lease.release()
