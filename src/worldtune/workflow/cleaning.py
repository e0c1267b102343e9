"""Removing what runs have left: old attempts, what is made again cheaply, or everything."""

import contextlib
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.training.lease import LEASE_FILE, kept_free
from worldtune.workflow.lock import WorkflowLock

CHEAP = ("logs", "wandb", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".snakemake/log")
"""Folders below the root that hold logs and caches."""
CODE = ("src", "tests")
EVERYTHING = ("results", "datasets", "checkpoints")
TRACKED = (".gitkeep",)
DOOMED = ".doomed"


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What would be removed."""

    paths: tuple[Path, ...]
    num_bytes: int
    """Size of the files that no other name keeps, hard links counted once."""
    kept: tuple[str, ...] = ()
    """What stays, with the reason."""

    def describe(self) -> str:
        """Return the paths and the size, for people."""
        lines = [f"keep    {text}" for text in self.kept] + [f"remove  {path}" for path in self.paths]
        return "\n".join([*lines, f"{len(self.paths)} folders and files, {self.num_bytes / 1e9:.2f} GB"])


def old_attempts(run_dir: Path) -> Removal:
    """Return a run's attempts but the one its manifest names, the one that was started last, and those in work.

    Raises:
        WorldtuneError: the run has no attempts.
    """
    attempts = sorted(path for path in run_dir.glob("attempts/*") if path.is_dir())
    if not attempts:
        raise WorldtuneError(f"{run_dir} has no attempts. Name a run that was trained (RUN=...).")
    kept: dict[Path, str] = {max(attempts, key=_started): "the one that was started last"}
    manifest = run_dir / "manifest.json"
    if manifest.exists():
        kept[run_dir / read_json(manifest)["attempt"]] = f"{manifest} names it"
    for attempt in attempts:
        holder = _holder(attempt)
        if holder is not None:
            kept[attempt] = f"{holder} writes into it"
    paths = tuple(attempt for attempt in attempts if attempt not in kept)
    return Removal(
        paths=paths, num_bytes=freed_bytes(paths), kept=tuple(f"{path}: {why}" for path, why in sorted(kept.items()))
    )


def _started(attempt: Path) -> float:
    record = attempt / "launch_info.yaml"
    return (record if record.exists() else attempt).stat().st_mtime


def _holder(folder: Path) -> str | None:
    """Return the process that holds a folder's lease, or None where nobody does."""
    if not (folder / LEASE_FILE).exists():
        return None
    with kept_free(folder) as holder:
        return holder


def cheap_files(root: Path) -> Removal:
    """Return logs and caches of the repository in `root`: nothing that a rule made."""
    paths = [root / name for name in CHEAP if (root / name).exists()]
    for folder in CODE:
        paths += sorted((root / folder).rglob("__pycache__"))
    return Removal(paths=tuple(paths), num_bytes=freed_bytes(paths))


def everything(root: Path) -> Removal:
    """Return the content of results/, datasets/ and checkpoints/; the folders, which may be links, stay.

    Raises:
        WorldtuneError: a training job writes into an attempt.
    """
    for lease in sorted((root / "results").glob(f"*/attempts/*/{LEASE_FILE}")):
        holder = _holder(lease.parent)
        if holder is not None:
            raise WorldtuneError(f"{holder} writes into {lease.parent}. Stop that job first; nothing was removed.")
    paths = [
        path
        for name in EVERYTHING
        if (root / name).is_dir()
        for path in sorted((root / name).iterdir())
        if path.name not in TRACKED
    ]
    return Removal(paths=tuple(paths), num_bytes=freed_bytes(paths))


def freed_bytes(paths: Iterable[Path]) -> int:
    """Return the bytes that the removal of files and folders gives back: a file that has another name stays."""
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    for path in paths:
        inside = [path] if path.is_symlink() or not path.is_dir() else path.rglob("*")
        for file in inside:
            status = file.lstat()
            if file.is_symlink() or file.is_dir():
                continue
            key = (status.st_dev, status.st_ino)
            size, links, seen = found.get(key, (status.st_size, status.st_nlink, 0))
            found[key] = (size, links, seen + 1)
    return sum(size for size, links, seen in found.values() if seen == links)


def remove(removal: Removal, root: Path) -> None:
    """Remove what was listed; no snakemake of the repository in `root` may run.

    Raises:
        WorldtuneError: one runs, or a training job has come to write into an attempt since the list was made.
    """
    # Named, since the lock ends with the object.
    lock = WorkflowLock(root / ".snakemake")
    lock.acquire()
    doomed = []
    with contextlib.ExitStack() as free:
        for attempt in (attempt for path in removal.paths for attempt in _attempts(path)):
            holder = free.enter_context(kept_free(attempt))
            if holder is not None:
                raise WorldtuneError(
                    f"{holder} has begun to write into {attempt}. Stop that job first; nothing was removed."
                )
        # Renamed first: a folder that is half removed must not pass for a whole one.
        for path in removal.paths:
            doomed.append(path.rename(path.with_name(path.name + DOOMED)))
    for path in doomed:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


def _attempts(path: Path) -> list[Path]:
    """Return the attempts that a folder is or holds: results/<run>/attempts/<identity>, or those of results/<run>."""
    return [path] if path.parent.name == "attempts" else [found for found in path.glob("attempts/*") if found.is_dir()]


def confirm(question: str, *, yes: bool) -> bool:
    """Ask on the terminal; only the answer "yes" is one.

    Raises:
        WorldtuneError: there is no terminal to ask on.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise WorldtuneError("there is no terminal to ask on. Repeat it with YES=1 (--yes); nothing was removed.")
    return input(f"{question} Type yes: ").strip() == "yes"
