"""Whether a dataset's files are still those that its stages made: files that are gone or changed since are found.

A file is hashed once. What it was then (size, times) is kept in datasets/<name>/ledger/validate/verified.parquet, and a
file that is still the same by these is not read again, as git does it.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, read_json, sha256_file
from worldtune.common.progress import progress
from worldtune.dataset.advice import force_command
from worldtune.dataset.clips import caption_path, read_rows
from worldtune.formats.structured_caption import caption_text

RECORD = "ledger/validate/verified.parquet"
COLUMNS: dict[str, pa.DataType] = {
    "path": pa.string(),
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
    "ctime_ns": pa.int64(),
    "sha256": pa.string(),
}
FILES_AT_ONCE = 4096
"""Files after which what was found is kept, so that a killed job need not hash them again."""

logger = logging.getLogger(__name__)

State = tuple[int, int, int]
"""Size, time of the last change of the content, time of the last change of the file."""


def verify_files(root: Path, expected: Mapping[str, str], *, threads: int = 1) -> dict[str, str]:
    """Compare files with the SHA-256 that their stages noted.

    Args:
        root: the dataset's folder.
        expected: path below it -> SHA-256.
        threads: files that are read at once.

    Returns:
        "gone" or "changed" for each file that is not as expected.
    """
    known = _read_record(root / RECORD)
    states = {name: _state(root / name) for name in expected}
    found = {name: _hash_if_same(known.get(name), state) for name, state in states.items()}
    todo = [name for name, state in states.items() if state is not None and found[name] is None]
    if todo:
        logger.info("%d of %d files are new or changed since they were last hashed", len(todo), len(expected))
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(todo), FILES_AT_ONCE):
            some = todo[start : start + FILES_AT_ONCE]
            label = f"hashing {start + 1} to {start + len(some)} of {len(todo)}"
            hashes = pool.map(_hash, [root / name for name in some])
            for name, value in zip(progress(some, label), hashes, strict=True):
                found[name] = value
            _write_record(root / RECORD, states, found)
    return {
        name: "gone" if found[name] is None else "changed" for name, sha256 in expected.items() if found[name] != sha256
    }


def read_captions(paths: Iterable[Path]) -> dict[Path, tuple[str, str]]:
    """Return the text of each caption file that can be read, and the SHA-256 that its stage noted for such content.

    That of a structured caption is the hash of what stands in the .json beside the text. Where the two files contradict
    each other, the hash is empty.
    """
    texts = {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            # The caller tells of a file that is gone.
            continue
        texts[path] = (text, _caption_sha256(text, path.with_suffix(".json")))
    return texts


def captions_of_rows(root: Path, rows: Sequence[Mapping[str, Any]], stage: str) -> list[str]:
    """Return the text of each caption of a captions stage, which must be the one that the stage wrote.

    What is made from a caption is known by the hash that the stage noted.

    Args:
        root: the dataset's folder.
        rows: usable rows of the stage's manifest.
        stage: the captions stage.

    Raises:
        WorldtuneError: a file is gone or was changed since.
    """
    paths = [caption_path(root, row["clip_id"]) for row in rows]
    found = read_captions(paths)
    for row, path in zip(rows, paths, strict=True):
        if path not in found or found[path][1] != row["caption_sha256"]:
            state = "is not what its stage wrote" if path in found else "cannot be read"
            raise WorldtuneError(f"{path} {state}. Delete what is there, then: {force_command(root.name, stage)}.")
    return [found[path][0] for path in paths]


def _caption_sha256(text: str, facts_path: Path) -> str:
    try:
        facts = read_json(facts_path)
    except (WorldtuneError, OSError):
        return ""
    if not isinstance(facts, dict) or facts.get("caption") != text:
        return ""
    structured = facts.get("caption_json")
    content = caption_text(structured) if isinstance(structured, dict) else text
    return hashlib.sha256(content.encode()).hexdigest()


def _state(path: Path) -> State | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hash(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        return None


def _hash_if_same(record: Mapping[str, Any] | None, state: State | None) -> str | None:
    if record is None or state != (record["size"], record["mtime_ns"], record["ctime_ns"]):
        return None
    return str(record["sha256"])


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        return {row["path"]: row for row in read_rows(path, COLUMNS)}
    except WorldtuneError as error:
        logger.warning("%s Every file is hashed again.", error)
        return {}


def _write_record(path: Path, states: Mapping[str, State | None], found: Mapping[str, str | None]) -> None:
    rows = [
        dict(zip(COLUMNS, (name, *state, found[name]), strict=True))
        for name, state in sorted(states.items())
        if state is not None and found[name] is not None
    ]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(COLUMNS.items()))), temporary)
