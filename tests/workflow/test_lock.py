import subprocess
import sys
from pathlib import Path

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.workflow.lock import WorkflowLock

HOLD = """
import sys, time
from pathlib import Path
from worldtune.workflow.lock import WorkflowLock
lock = WorkflowLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_second_holder_is_named_and_kill_releases(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorldtuneError, match=f"process {holder.pid} on"):
            WorkflowLock(tmp_path).acquire()
        holder.kill()
        holder.wait()
    WorkflowLock(tmp_path).acquire()
