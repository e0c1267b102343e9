import os
import signal

from worldtune.dataset.ledger import Ledger, open_ledger
from worldtune.dataset.work import Outcome, Task, do_tasks


def work(argument: str) -> Outcome:
    if argument == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(row={"clip_id": argument, "source_key": argument, "status": "ok", "reason": ""})


def died(argument: str) -> Outcome:
    return Outcome(row={"clip_id": argument, "source_key": argument, "status": "unusable", "reason": "died"})


def run(root, *, processes: int) -> dict[str, str]:
    names = ["a", "b", "crash", "c", "d"]
    tasks = [Task(clip_id=name, inputs={}, argument=name) for name in names]
    with open_ledger(root, "stage", "0000") as ledger:
        rows = do_tasks(ledger, tasks, work, died, label="test", processes=processes)
    assert [row["clip_id"] for row in rows] == names
    return {row["clip_id"]: row["status"] for row in rows}


def test_a_crashing_decoder_costs_only_its_own_clip(tmp_path):
    expected = {"a": "ok", "b": "ok", "crash": "unusable", "c": "ok", "d": "ok"}
    assert run(tmp_path, processes=2) == expected
    ledger = Ledger(tmp_path, "stage", "0000")
    assert ledger.current("d", {}) is not None
    # It may have been killed for another clip's memory: it is tried again by the next job.
    assert ledger.current("crash", {}) is None
