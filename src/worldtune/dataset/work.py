"""Doing a stage's work clip by clip: only what changed, in several processes, with results kept as they come."""

import functools
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from worldtune.common.files import syncs_left_to_caller
from worldtune.common.progress import progress
from worldtune.dataset.ledger import Ledger

logger = logging.getLogger(__name__)

Argument = TypeVar("Argument")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the work on one clip gave."""

    row: dict[str, Any]
    """The clip's row in the manifest."""
    outputs: tuple[Path, ...] = ()
    """Files that were made, all of them: the ledger syncs them before it records them."""
    may_pass: bool = False
    """Whether it failed for a reason that may pass: the ledger does not keep that, so that the next job tries again."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Argument]):
    """Work on one clip."""

    clip_id: str
    inputs: dict[str, Any]
    """What the result depends on, as JSON values."""
    argument: Argument
    """What the work function is called with."""


def do_tasks(
    ledger: Ledger,
    tasks: Sequence[Task[Argument]],
    work: Callable[[Argument], Outcome],
    died: Callable[[Argument], Outcome],
    *,
    label: str,
    processes: int,
) -> list[dict[str, Any]]:
    """Return a row for each task, from the stage's ledgers where its inputs and files are as they were.

    Args:
        ledger: where results are kept, from `open_ledger`.
        tasks: the work.
        work: does one task; a module-level function.
        died: the outcome of a task whose process died, alone, twice; it is not kept in the ledger either.
        label: the stage and shard, for the log.
        processes: worker processes; 1 works in this one.
    """
    ledger.adopt([task.clip_id for task in tasks])
    rows = {}
    open_tasks = []
    for task in tasks:
        record = ledger.current(task.clip_id, task.inputs)
        if record is None:
            open_tasks.append(task)
        else:
            rows[task.clip_id] = record["row"]
    logger.info("%s: %d clips, %d of them as they were", label, len(tasks), len(rows))
    # In advance, since other processes write the files.
    ledger.start(*(task.clip_id for task in open_tasks))
    results = _results(open_tasks, functools.partial(_unsynced, work), processes)
    lost = set()
    with ledger.results_in_groups():
        for _, (task, outcome) in zip(progress(open_tasks, label), results, strict=True):
            if outcome is None:
                outcome = replace(died(task.argument), may_pass=True)
            if outcome.may_pass:
                lost.add(task.clip_id)
            else:
                ledger.finish(task.clip_id, task.inputs, outcome.outputs, outcome.row)
            rows[task.clip_id] = outcome.row
            if outcome.row["status"] != "ok":
                logger.warning("%s: %s: %s", label, outcome.row["source_key"], outcome.row["reason"])
    if lost:
        logger.warning("%s: %d clips failed for a reason that may pass; the next job tries again", label, len(lost))
    return [rows[task.clip_id] for task in tasks]


def _unsynced(work: Callable[[Argument], Outcome], argument: Argument) -> Outcome:
    with syncs_left_to_caller():
        return work(argument)


def _results(
    tasks: Sequence[Task[Argument]], work: Callable[[Argument], Outcome], processes: int
) -> Iterator[tuple[Task[Argument], Outcome | None]]:
    """Yield each task with its outcome as it ends; None where its process died."""
    if processes == 1:
        for task in tasks:
            yield task, work(task.argument)
        return
    left = {task.clip_id: task for task in tasks}
    try:
        for task, outcome in _pool_results(list(left.values()), work, processes):
            del left[task.clip_id]
            yield task, outcome
    except BrokenProcessPool:
        # A decoder that crashes takes the whole pool along: alone, each task shows whether it was the one.
        logger.warning("a worker process died; the remaining %d clips are done one by one", len(left))
        for task in left.values():
            yield task, _alone(task, work)


def _alone(task: Task[Argument], work: Callable[[Argument], Outcome]) -> Outcome | None:
    for _ in range(2):
        try:
            return next(_pool_results([task], work, 1))[1]
        except BrokenProcessPool:
            logger.warning("the process of clip %s died", task.clip_id)
    return None


def _pool_results(
    tasks: Sequence[Task[Argument]], work: Callable[[Argument], Outcome], processes: int
) -> Iterator[tuple[Task[Argument], Outcome]]:
    # Not forked: a fork of a process with threads can hang.
    pool = ProcessPoolExecutor(min(processes, max(len(tasks), 1)), multiprocessing.get_context("spawn"))
    try:
        futures: dict[Future[Outcome], Task[Argument]] = {pool.submit(work, task.argument): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
