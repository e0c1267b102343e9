"""What a stage has done for each clip of a shard: an append-only record that outlives the job's declared output.

A line is a JSON object {"clip_id", "inputs", "outputs", "row"}: what the clip's result was made from, the files that
were made ({path below the dataset's folder: size}), and the clip's row in the manifest.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

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
    kinds = {"clip_id": str, "inputs": dict, "outputs": dict, "row": dict}
    whole = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in kinds.items())
    return record if whole else None


class Ledger:
    """The ledger of one stage and shard; the last record of a clip counts.

    A job that is killed may leave half a line at the end; such a line is passed over.
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
        if record is None or canonical_json(record["inputs"]) != canonical_json(inputs):
            return None
        for name, size in record["outputs"].items():
            try:
                if (self.root / name).stat().st_size != size:
                    return None
            except OSError:
                return None
        return record

    def append(self, *records: Record) -> None:
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


def make_record(
    root: Path, clip_id: str, inputs: dict[str, Any], outputs: tuple[Path, ...], row: dict[str, Any]
) -> Record:
    """Return a ledger record for files that exist below `root`."""
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in outputs}
    return {"clip_id": clip_id, "inputs": inputs, "outputs": sizes, "row": row}
