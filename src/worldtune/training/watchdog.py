"""A thread on every rank that ends a job in which no rank goes on, and names the rank that keeps the others waiting.

Each rank's thread reports where its main thread is to a store that all can read, since main threads may hang. A job
hangs when every rank has made no mark (see `whereabouts.py`) for longer than its phase may take, or does not answer at
all. The first rank to see it explains it for all. Each rank leaves the explanation where the launcher looks for the
error to print last, and ends its process; a retry goes on from the last checkpoint.

A process that died is torchrun's matter. One that stands still as a whole, as when its job is suspended, ages no more
than its thread does; one in a debugger keeps the whole job from being ended.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from worldtune.common.files import write_json
from worldtune.common.script import record_error
from worldtune.training.hang import Hang, explain
from worldtune.training.whereabouts import Whereabouts, is_traced, look, newest_mark

HANG_FILE = "hang.json"
EXIT_HUNG = 76
SLOW_FACTOR = 4.0
"""How much longer the phases may take that are no part of a step, and the first step."""
MAX_BEAT_S = 10.0
BEATS = 20
"""Reports of a rank at least until it is overdue; one that misses half of them does not answer."""
MIN_SILENT_S = 10.0
"""Least silence of a rank that does not answer: PyTorch takes seconds to resolve its first stack."""
REPORT_S = 30.0
COLLECTIVE_MARGIN_S = 600.0
VERDICT = "verdict"
logger = logging.getLogger(__name__)


@contextmanager
def watched(attempt: Path, limit_s: float) -> Iterator[None]:
    """Watch all ranks meanwhile; the default process group must exist.

    Args:
        attempt: folder of hang.json, which need not exist.
        limit_s: seconds that a part of a step may take; other phases may take `SLOW_FACTOR` times as long.
    """
    thread = _Watchdog(attempt, limit_s)
    thread.start()
    try:
        yield
    finally:
        thread.ended.set()
        # Not for ever: the store may be gone.
        thread.join(REPORT_S)


def set_collective_timeouts(limit_s: float) -> None:
    """Let no collective of the groups that exist now time out before the watchdog has spoken, which tells more."""
    timeout = timedelta(seconds=limit_s * SLOW_FACTOR + COLLECTIVE_MARGIN_S)
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timeout, group)


class _Watchdog(threading.Thread):
    def __init__(self, attempt: Path, limit_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.ended = threading.Event()
        self._attempt = attempt
        self._limit_s = limit_s
        self._beat_s = min(MAX_BEAT_S, limit_s / BEATS)
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        # A connection of its own: the main thread may hang in a request of the other one.
        connection = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self._store = dist.PrefixStore("watchdog", connection)
        self._beat = 0
        self._mark = newest_mark()
        self._idle_s = 0.0
        self._heard: dict[int, Whereabouts] = {}
        self._silent_s = dict.fromkeys(range(self._world_size), 0.0)

    def run(self) -> None:
        before = time.monotonic()
        try:
            while not self.ended.wait(self._beat_s):
                now = time.monotonic()
                # While this process was not running at all, its main thread had no chance either.
                self._look_around(min(now - before, 2 * self._beat_s))
                before = now
        except (RuntimeError, OSError) as error:
            # Of the store, which goes with its host; torchrun ends the job then.
            if not self.ended.is_set():
                logger.warning("the watchdog has lost the other ranks and ends: %s", error)

    def _look_around(self, elapsed_s: float) -> None:
        newest = newest_mark()
        self._idle_s = self._idle_s + elapsed_s if newest == self._mark else 0.0
        self._mark = newest
        limit_s = self._limit_s * (SLOW_FACTOR if newest.may_be_slow else 1.0)
        self._beat += 1
        here = look(
            rank=self._rank,
            beat=self._beat,
            idle_s=self._idle_s,
            is_overdue=self._idle_s > limit_s,
            in_detail=self._idle_s > limit_s,
        )
        self._store.set(str(self._rank), json.dumps(here.as_json()))
        # Before that nothing is asked of the others.
        if self._idle_s <= limit_s / 2:
            self._silent_s = dict.fromkeys(self._silent_s, 0.0)
            return
        self._listen(elapsed_s)
        if self._store.check([VERDICT]):
            self._end(Hang(**json.loads(self._store.get(VERDICT))), is_first=False)
        if here.is_overdue and (hang := self._hang()) is not None:
            mine = json.dumps(asdict(hang))
            said = self._store.compare_set(VERDICT, "", mine).decode()
            self._end(Hang(**json.loads(said)), is_first=said == mine)

    def _listen(self, elapsed_s: float) -> None:
        for rank in self._silent_s:
            heard = self._heard.get(rank)
            if self._store.check([str(rank)]):
                self._heard[rank] = Whereabouts.from_json(json.loads(self._store.get(str(rank))))
            is_new = self._heard.get(rank) is not None and (heard is None or heard.beat != self._heard[rank].beat)
            self._silent_s[rank] = 0.0 if is_new else self._silent_s[rank] + elapsed_s

    def _hang(self) -> Hang | None:
        """Return why the job hangs; None while some rank goes on, or is in a debugger."""
        limit_s = max(self._beat_s * BEATS / 2, MIN_SILENT_S)
        silent = {rank for rank, seconds in self._silent_s.items() if seconds > limit_s}
        others = [self._heard[rank] for rank in self._silent_s if rank in self._heard]
        # One that has never reported is still on its way here.
        if len(others) < self._world_size:
            return None
        if not all(place.rank in silent or place.is_overdue for place in others):
            return None
        if any(place.is_debugged or (self._is_near(place) and is_traced(place.pid)) for place in others):
            return None
        return explain(others, silent, min(place.idle_s for place in others if place.rank not in silent))

    def _is_near(self, place: Whereabouts) -> bool:
        """Return whether a rank is of the same torchrun, so that its process id means the same here."""
        mine = self._heard[self._rank].error_file
        # Each torchrun has a folder of its own, and each of its processes a folder in that.
        return mine != "" and Path(place.error_file).parents[1:2] == Path(mine).parents[1:2]

    def _end(self, hang: Hang, *, is_first: bool) -> None:
        # Where a file system hangs, so may what is written now; the job has to end all the same.
        report = threading.Thread(target=self._report, args=(hang,), kwargs={"is_first": is_first}, daemon=True)
        report.start()
        report.join(REPORT_S)
        # The main thread cannot be asked to.
        os._exit(EXIT_HUNG)

    def _report(self, hang: Hang, *, is_first: bool) -> None:
        record_error(hang.message)
        for rank in hang.silent:
            # It cannot end itself. Were it left to torchrun, its end would read as one for want of memory.
            if rank != self._rank and self._is_near(self._heard[rank]):
                record_error(hang.message, path=self._heard[rank].error_file)
                # Another rank may have been faster.
                with suppress(ProcessLookupError):
                    os.kill(self._heard[rank].pid, signal.SIGKILL)
        if is_first:
            logger.error("%s", hang.message)
            ranks = [place.as_json() for _, place in sorted(self._heard.items())]
            write_json(self._attempt / HANG_FILE, {**asdict(hang), "time": time.time(), "ranks": ranks})
