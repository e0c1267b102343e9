"""The record of a run: JSON lines in the attempt, a line on the console, Weights & Biases as a view."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from worldtune.common.disk import disk_errors_named
from worldtune.common.files import write_text

METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
SKIPPED_FILE = "skipped.jsonl"
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read a file of JSON lines; a missing file is empty and a torn last line is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows in one write, so that a reader sees all of them or, after a crash, at most one torn line."""
    text = "".join(_line(row) for row in rows)
    with disk_errors_named(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)


def replace_rows(path: Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Write rows behind those in the file, without those of the file that agree with one of them in all `keys`."""

    def name(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in keys)

    new = {name(row) for row in rows}
    kept = [row for row in read_rows(path) if name(row) not in new]
    write_text(path, "".join(_line(row) for row in [*kept, *rows]))


def cut_rows(path: Path, last_step: int) -> int:
    """Remove the rows of steps after `last_step`, which a resumed run makes again; returns their number."""
    if not path.exists():
        return 0
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] <= last_step]
    write_text(path, "".join(_line(row) for row in kept))
    return len(rows) - len(kept)


class StepClock:
    """Times the parts of a step: on a GPU by events, so that timing itself does not wait for the device."""

    def __init__(self, device: torch.device) -> None:
        """Start the first part."""
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, part: str) -> None:
        """End a part, which began at the mark before."""
        self._marks.append((part, self._now()))

    def finish(self) -> dict[str, float]:
        """Return the seconds of each part, summed over marks of one name, and of the step; waits for the device."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        seconds: dict[str, float] = {}
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            elapsed = before.elapsed_time(after) / 1000.0 if self._cuda else after - before
            seconds[f"{part}_s"] = seconds.get(f"{part}_s", 0.0) + elapsed
        return {**seconds, "step_s": sum(seconds.values())}


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory that was used, in GiB: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # Not on every system; only a CPU run needs it.

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def finite(value: float) -> float | None:
    """Return a number for a record, which has None where it is not finite."""
    return value if math.isfinite(value) else None


def console_text(row: Row, remaining_s: float) -> str:
    """Return a step's numbers for people; MFU only where it is known."""
    minutes, seconds = divmod(round(remaining_s), 60)
    loss, edm_loss, norm = (math.nan if row[key] is None else row[key] for key in ("loss", "edm_loss", "grad_norm"))
    mfu = "" if row["mfu"] is None else f"MFU {row['mfu']:.1%}  "
    return (
        f"loss {loss:.4f}  edm_loss {edm_loss:.4f}  norm {norm:.3f}  lr {row['learning_rate']:.2e}  "
        f"{row['step_s']:.2f} s/step  {row['tokens_per_s']:,.0f} tokens/s  {mfu}{row['peak_memory_gb']:.1f} GiB  "
        f"left {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    )


def tracked(row: Row) -> dict[str, float]:
    """Return the measured numbers of a row, those of groups as `key/group`."""
    return {key: value for key, value in flat(row).items() if isinstance(value, float)}


def flat(row: Row) -> Row:
    """Return a row whose tables are columns of their own, named `key/name`."""
    columns: Row = {}
    for key, value in row.items():
        columns |= {f"{key}/{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return columns


class Tracker(Protocol):
    """A view of the metrics outside the attempt."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step, each named `kind/name`; the steps of a kind rise, but for what a restart repeats."""
        ...

    def log_videos(self, videos: Mapping[str, Path], step: int) -> None:
        """Show MP4 files of a step by names `kind/name` of one kind."""
        ...

    def finish(self) -> None:
        """Send what is left."""
        ...


class NullTracker:
    """Shows nothing."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_videos(self, videos: Mapping[str, Path], step: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class WandbTracker:
    """Weights & Biases; a resumed attempt goes on under the same run id, which is its identity.

    W&B takes nothing for a step that lies behind, and a resumed run begins behind what it has sent: the held-out loss
    of the step that it was stopped at would be lost. So each kind of numbers has a column `kind/step` of its own, which
    its charts are over. What was sent before is not sent again, since W&B would show both.
    """

    def __init__(
        self,
        *,
        mode: Literal["online", "offline"],
        project: str,
        name: str,
        identity: str,
        folder: Path,
        config: Row,
        recorded: Mapping[str, int],
    ) -> None:
        """Open the run.

        Args:
            mode: whether it is sent; `wandb sync` sends what was written offline.
            project: of W&B.
            name: shown for the run.
            identity: id of the run.
            folder: takes its files.
            config: shown beside it.
            recorded: last step of each kind in the attempt's record. Offline, nobody else knows what earlier starts
                have written; online, the server says what it has.
        """
        import wandb  # Takes a second and writes folders; a disabled tracker needs neither.

        folder.mkdir(parents=True, exist_ok=True)
        # There is nothing to resume offline: each start writes a folder, all under one id.
        resume: Literal["allow"] | None = "allow" if mode == "online" else None
        self._run = wandb.init(
            mode=mode,
            project=project,
            name=name,
            id=identity,
            resume=resume,
            dir=str(folder),
            config=config,
            # Its summary would stand between the last step and how the run ended.
            settings=wandb.Settings(quiet=True),
        )
        self._last_sent = dict(recorded) if mode == "offline" else {}
        self._is_online = mode == "online"
        self._defined: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers of a step."""
        by_kind: dict[str, dict[str, float]] = {}
        for key, value in values.items():
            by_kind.setdefault(key.partition("/")[0], {})[key] = value
        for kind, part in by_kind.items():
            self._define(kind)
            if step > self._last_sent.get(kind, -1):
                self._run.log({**part, f"{kind}/step": step})

    def _define(self, kind: str) -> None:
        if kind in self._defined:
            return
        self._defined.add(kind)
        column = f"{kind}/step"
        if self._is_online:
            self._last_sent[kind] = int(self._run.summary.get(column, -1))
        self._run.define_metric(column, hidden=True)
        self._run.define_metric(f"{kind}/*", step_metric=column)

    def log_videos(self, videos: Mapping[str, Path], step: int) -> None:
        """Send copies of MP4 files of a step."""
        import wandb

        kind = next((name.partition("/")[0] for name in videos), "")
        self._define(kind)
        if step > self._last_sent.get(kind, -1):
            shown = {name: wandb.Video(str(path), format="mp4") for name, path in videos.items()}
            self._run.log({**shown, f"{kind}/step": step})

    def finish(self) -> None:
        """Close the run, and wait until all of it is written."""
        import wandb

        self._run.finish()
        # W&B's own process writes, and is else waited for at the interpreter's end, which a training process skips.
        wandb.teardown()
