"""What a stage has done for each clip of a shard: an append-only record that outlives the job's declared output.

A line is a JSON object. {"clip_id", "turn", "started": true} says that a job is about to write the clip's files, so
that what was known of them holds no more. {"clip_id", "turn", "inputs", "outputs", "row"} says what the clip's result
was made from, the files that were made ({path below the dataset's folder: size}), and the clip's row in the manifest.
The turn counts how often the clip's files were written: where a changed number of shards moves a clip to another
ledger, it tells which one knows the file that is there. A line without a turn is older than all that have one.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from worldtune.common.disk import disk_errors_named
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import canonical_json, sync_files, write_text

logger = logging.getLogger(__name__)

Record = dict[str, Any]
LINE_START = b'{"clip_id":"'
"""What each line begins with that `Ledger` has written."""
GROUP_S = 0.5
"""Seconds for which results may wait for others, to be written together."""
GROUP_SIZE = 256
"""Results that are written together at most."""


def ledger_path(root: Path, stage: str, shard: str) -> Path:
    """Return where the ledger of a stage and shard lies."""
    return root / "ledger" / stage / f"{shard}.jsonl"


def _parse(line: bytes) -> Record | None:
    """Return a line's record, or None where it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    kinds: dict[str, type] = {"clip_id": str}
    kinds |= {"turn": int} if "turn" in record else {}
    kinds |= {"started": bool} if "started" in record else {"inputs": dict, "outputs": dict, "row": dict}
    return record if all(isinstance(record.get(key), kind) for key, kind in kinds.items()) else None


def _read(path: Path, wanted: Collection[str] | None = None) -> Iterator[Record]:
    """Yield the whole records of a ledger: those of the wanted clips, or all."""
    names = None if wanted is None else {clip_id.encode() for clip_id in wanted}
    with open(path, "rb") as file:
        for line in file:
            # To parse what all other shards know would take longer than the work itself.
            if names is not None and line.startswith(LINE_START) and _name(line) not in names:
                continue
            record = _parse(line)
            if record is None:
                logger.info("%s: one record was not written whole and is passed over", path)
            else:
                yield record


def _name(line: bytes) -> bytes:
    """Return the clip id in a line that begins with LINE_START."""
    return line[len(LINE_START) : line.find(b'"', len(LINE_START))]


def _start(clip_id: str, turn: int) -> Record:
    return {"clip_id": clip_id, "turn": turn, "started": True}


def _later(one: Record, other: Record) -> Record:
    """Return the later one of two ledgers' last records of a clip; where they contradict, nothing is known of it."""
    turns = one.get("turn", 0), other.get("turn", 0)
    if turns[0] != turns[1]:
        return one if turns[0] > turns[1] else other
    return one if one == other else _start(one["clip_id"], turns[0])


@contextlib.contextmanager
def open_ledger(root: Path, stage: str, shard: str) -> Iterator["Ledger"]:
    """Give the ledger of a stage and shard to one job at a time; a second job waits until the first one has ended.

    The kernel holds the lock and releases it with the process, however that ends.

    Raises:
        WorldtuneError: the file system knows no locks.
    """
    path = ledger_path(root, stage, shard).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning(
                "another job of stage %s, shard %s runs and holds %s; waiting for its end", stage, shard, path
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise WorldtuneError(
                f"{path} cannot be locked ({error}). Put {root} on a file system that has locks, or mount it with them "
                "(Lustre: the option flock)."
            ) from error
        yield Ledger(root, stage, shard)


class Ledger:
    """The ledger of one stage and shard; the last record of a clip counts.

    A job that is killed may leave half a line at the end; such a line is passed over. Only a job that got it from
    `open_ledger` may write.
    """

    def __init__(self, root: Path, stage: str, shard: str) -> None:
        """Read the ledger below the dataset's folder `root`; there may be none yet."""
        self.root = root
        self.path = ledger_path(root, stage, shard)
        self._records: dict[str, Record] = {}
        self._last_rows: dict[str, dict[str, Any]] = {}
        self._are_grouped = False
        self._waiting: list[Record] = []
        self._written_s = 0.0
        if self.path.exists():
            for record in _read(self.path):
                self._remember(record)

    def adopt(self, clip_ids: Iterable[str]) -> None:
        """Take over what the other ledgers of the stage know of these clips and this one does not.

        After a change of the number of shards a clip's files are known to the ledger of its old shard.
        """
        wanted = set(clip_ids)
        latest = {clip_id: self._records[clip_id] for clip_id in wanted & self._records.keys()}
        for path in sorted(self.path.parent.glob("*.jsonl")):
            if path == self.path:
                continue
            last = {}
            for record in _read(path, wanted):
                if record["clip_id"] in wanted:
                    last[record["clip_id"]] = record
                    if "row" in record and record["clip_id"] not in self._records:
                        self._last_rows[record["clip_id"]] = record["row"]
            for clip_id, record in last.items():
                latest[clip_id] = _later(latest[clip_id], record) if clip_id in latest else record
        self._append(*(record for clip_id, record in latest.items() if record != self._records.get(clip_id)))

    def current(self, clip_id: str, inputs: dict[str, Any]) -> Record | None:
        """Return a clip's record if it was made from the same inputs and its files are there with the same sizes."""
        record = self._records.get(clip_id)
        if record is None or "started" in record:
            return None
        if canonical_json(record["inputs"]) != canonical_json(inputs):
            return None
        for name, size in record["outputs"].items():
            try:
                if (self.root / name).stat().st_size != size:
                    return None
            except OSError:
                return None
        return record

    def start(self, *clip_ids: str) -> None:
        """Record that the files of these clips are about to be written; only `finish` makes a clip current again.

        Sizes cannot tell a file that a job wrote before it died from the one that an earlier record means.
        """
        self._append(*(_start(clip_id, self._turn(clip_id) + 1) for clip_id in clip_ids))

    @contextlib.contextmanager
    def results_in_groups(self) -> Iterator[None]:
        """Within the block `finish` syncs the outputs and writes the records of several clips together.

        A job that is killed loses the results of at most GROUP_S, which the next one makes again.
        """
        self._are_grouped = True
        try:
            yield
        finally:
            self._are_grouped = False
            self._write_waiting()

    def finish(self, clip_id: str, inputs: dict[str, Any], outputs: tuple[Path, ...], row: dict[str, Any]) -> None:
        """Record the result of a clip that was started.

        Args:
            clip_id: the clip.
            inputs: what the result was made from, as JSON values.
            outputs: the files that were made, below the dataset's folder.
            row: the clip's row in the manifest.
        """
        sizes = {path.relative_to(self.root).as_posix(): path.stat().st_size for path in outputs}
        turn = self._turn(clip_id)
        self._waiting.append({"clip_id": clip_id, "turn": turn, "inputs": inputs, "outputs": sizes, "row": row})
        is_full = len(self._waiting) >= GROUP_SIZE or time.monotonic() - self._written_s >= GROUP_S
        if is_full or not self._are_grouped:
            self._write_waiting()

    def _write_waiting(self) -> None:
        records, self._waiting = self._waiting, []
        # Before the ledger says that they are there.
        sync_files(self.root / name for record in records for name in record["outputs"])
        self._append(*records)
        self._written_s = time.monotonic()

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the present rows of all finished clips, by clip id."""
        return {clip_id: record["row"] for clip_id, record in self._records.items() if "row" in record}

    def last_row(self, clip_id: str) -> dict[str, Any] | None:
        """Return what the last finished work on a clip gave, also where it has to be done again; None for no work."""
        return self._last_rows.get(clip_id)

    def forget(self, clip_ids: Iterable[str]) -> None:
        """Remove all that is known of some clips; the ledger is written anew, whole or not at all."""
        doomed = set(clip_ids) & self._records.keys()
        if doomed:
            kept = [record for record in _read(self.path) if record["clip_id"] not in doomed]
            write_text(self.path, "".join(canonical_json(record) + "\n" for record in kept))
            self._records, self._last_rows = {}, {}
            for record in kept:
                self._remember(record)

    def _remember(self, record: Record) -> None:
        self._records[record["clip_id"]] = record
        if "row" in record:
            self._last_rows[record["clip_id"]] = record["row"]

    def _turn(self, clip_id: str) -> int:
        return int(self._records.get(clip_id, {}).get("turn", 0))

    def _append(self, *records: Record) -> None:
        """Add records and wait until they are on disk."""
        if not records:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors_named(self.path), open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # Half a line would swallow the first new record.
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write("".join(canonical_json(record) + "\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())
        for record in records:
            self._remember(record)
