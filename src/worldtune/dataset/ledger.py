"""What a stage has done for each clip of a shard: an append-only record that outlives the job's declared output.

A line is a JSON object. {"clip_id", "started": true} says that a job is about to write the clip's files, so that what
was known of them holds no more. {"clip_id", "inputs", "outputs", "row"} says what the clip's result was made from, the
files that were made ({path below the dataset's folder: size}), and the clip's row in the manifest.
"""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import canonical_json

logger = logging.getLogger(__name__)

Record = dict[str, Any]


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
    kinds |= {"started": bool} if "started" in record else {"inputs": dict, "outputs": dict, "row": dict}
    return record if all(isinstance(record.get(key), kind) for key, kind in kinds.items()) else None


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
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        for line in self.path.read_bytes().split(b"\n"):
            if not line:
                continue
            record = _parse(line)
            if record is None:
                logger.warning("%s: one record was not written whole; its clip is done again", self.path)
            else:
                self._records[record["clip_id"]] = record

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
        self._append(*({"clip_id": clip_id, "started": True} for clip_id in clip_ids))

    def finish(self, clip_id: str, inputs: dict[str, Any], outputs: tuple[Path, ...], row: dict[str, Any]) -> None:
        """Record a clip's result.

        Args:
            clip_id: the clip.
            inputs: what the result was made from, as JSON values.
            outputs: the files that were made, below the dataset's folder.
            row: the clip's row in the manifest.
        """
        sizes = {path.relative_to(self.root).as_posix(): path.stat().st_size for path in outputs}
        self._append({"clip_id": clip_id, "inputs": inputs, "outputs": sizes, "row": row})

    def _append(self, *records: Record) -> None:
        """Add records and wait until they are on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # Half a line would swallow the first new record.
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write("".join(canonical_json(record) + "\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())
        self._records.update((record["clip_id"], record) for record in records)
