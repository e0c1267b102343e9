"""Where this process is: the marks that its main thread makes as it goes, and its stack when it stands still.

A mark is one assignment, so that loops may make as many as they like. `look` is for another thread, while the main one
may hang in a collective or in a file system.
"""

import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch._C._distributed_c10d as c10d

import worldtune
from worldtune.common.script import ERROR_FILE

STEP_PHASES = ("data", "forward", "backward", "optimizer")
"""What a step consists of. Other phases, such as building the model or saving, may take far longer."""
LIBRARY = Path(worldtune.__file__).parent.parent
COLLECTIVE_MODULES = ("torch/distributed/distributed_c10d.py", "torch/distributed/_functional_collectives.py")
WRAPPER_MODULES = ("torch/distributed/c10d_logger.py",)
DEBUGGER_MODULES = ("bdb.py", "pydevd.py")


class Mark(NamedTuple):
    """The newest sign of life of the main thread."""

    number: int
    """Of this mark, counted from the process's start."""
    phase: str
    """What is being done."""
    step: int | None
    """The optimizer step that it is part of, counted from 1."""
    may_be_slow: bool
    """Whether much more time than usual may pass before the next mark."""


class _Marks:
    def __init__(self) -> None:
        self.newest = Mark(0, "starting", None, True)
        self.first_step: int | None = None


_marks = _Marks()


def mark(phase: str, step: int | None = None) -> None:
    """Say that the main thread has come to a phase.

    Args:
        phase: what it does now; of `STEP_PHASES`, or anything else that may take long.
        step: the optimizer step that this is part of, counted from 1.
    """
    if _marks.first_step is None and phase in STEP_PHASES:
        _marks.first_step = step
    # In the first step kernels are compiled, and files are read for the first time.
    may_be_slow = phase not in STEP_PHASES or step == _marks.first_step
    _marks.newest = Mark(_marks.newest.number + 1, phase, step, may_be_slow)


def mark_progress() -> None:
    """Say within a long phase that it goes on."""
    _marks.newest = _marks.newest._replace(number=_marks.newest.number + 1)


def newest_mark() -> Mark:
    """Return the newest mark of this process."""
    return _marks.newest


@dataclass(frozen=True, kw_only=True)
class Place:
    """A call in this library's code."""

    operation: str
    """The function that was called: a collective such as all_reduce, or whatever the main thread is in."""
    at: str
    """Module and line of the library that called it, empty where none did."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A collective that a rank has begun and that has not ended."""

    group: str
    """Name of the process group."""
    number: int
    """Of the collective, counted in its group on this rank."""
    place: Place
    """What it is."""


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where a rank is."""

    rank: int
    host: str
    pid: int
    error_file: str
    """Where torchrun looks for this process's error; empty outside torchrun."""
    beat: int
    """Number of this report of the rank."""
    idle_s: float
    """Seconds since the newest mark, without those in which the whole process stood still."""
    is_overdue: bool
    """Whether that is longer than the phase may take."""
    marks: int
    """Number of the newest mark."""
    phase: str
    step: int | None
    is_debugged: bool = False
    """Whether a debugger holds the process."""
    collective: Place | None = None
    """The collective that the main thread has called."""
    doing: Place | None = None
    """The innermost function of the main thread; None while it is not overdue."""
    pending: list[Pending] = field(default_factory=list)
    """Collectives that are not over, the oldest first. A GPU's need not be on the stack."""
    begun: dict[str, int] = field(default_factory=dict)
    """Number of the newest collective that this rank has begun, by group."""

    def as_json(self) -> dict[str, Any]:
        """Return a value for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what `as_json` made a value of."""
        places = {key: Place(**value[key]) if value[key] else None for key in ("collective", "doing")}
        pending = [Pending(**{**entry, "place": Place(**entry["place"])}) for entry in value["pending"]]
        return cls(**{**value, **places, "pending": pending})


def look(*, rank: int, beat: int, idle_s: float, is_overdue: bool, in_detail: bool) -> Whereabouts:
    """Return where this process is; `in_detail` looks at its stack and its pending collectives too."""
    newest = newest_mark()
    details: dict[str, Any] = {}
    if in_detail:
        frames = _main_frames()
        pending, begun = _recorded_collectives()
        details = {
            "is_debugged": is_traced(os.getpid()) or any(Path(frame.file).name in DEBUGGER_MODULES for frame in frames),
            "collective": _collective(frames),
            "doing": _innermost(frames),
            "pending": pending,
            "begun": begun,
        }
    return Whereabouts(
        rank=rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        error_file=os.environ.get(ERROR_FILE, ""),
        beat=beat,
        idle_s=idle_s,
        is_overdue=is_overdue,
        marks=newest.number,
        phase=newest.phase,
        step=newest.step,
        **details,
    )


def is_traced(pid: int) -> bool:
    """Return whether a debugger is attached to a process of this machine; False where that cannot be seen."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(line.split()[1] != "0" for line in status.splitlines() if line.startswith("TracerPid:"))


class _Frame(NamedTuple):
    name: str
    file: str
    line: int


def _main_frames() -> list[_Frame]:
    """Return the main thread's stack, the innermost frame first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = []
    while frame is not None:
        frames.append(_Frame(frame.f_code.co_name, frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return frames


def _collective(frames: Sequence[_Frame]) -> Place | None:
    """Return the collective among frames, by the name that was called from outside torch's module of collectives."""
    called: _Frame | None = None
    for frame in frames:
        if frame.file.endswith(COLLECTIVE_MODULES):
            called = frame
        elif called is not None and not frame.file.endswith(WRAPPER_MODULES):
            break
    return Place(operation=called.name, at=_library_line(frames)) if called is not None else None


def _innermost(frames: Sequence[_Frame]) -> Place | None:
    if not frames:
        return None
    name, file, line = frames[0]
    return Place(operation=f"{name} ({'/'.join(Path(file).parts[-2:])}:{line})", at=_library_line(frames))


def _library_line(frames: Iterable[_Frame]) -> str:
    for frame in frames:
        path = Path(frame.file)
        if path.is_relative_to(LIBRARY):
            return f"{path.relative_to(LIBRARY)}:{frame.line}"
    return ""


def _recorded_collectives() -> tuple[list[Pending], dict[str, int]]:
    """Return what PyTorch's flight recorders (of gloo and NCCL) hold: pending collectives and the newest begun."""
    pending: list[Pending] = []
    begun: dict[str, int] = {}
    for name in ("_dump_fr_trace", "_dump_nccl_trace"):
        # The second one is missing without CUDA.
        dump = getattr(c10d, name, None)
        # The recorder's own bytes, of this process.
        entries = pickle.loads(dump()).get("entries", []) if dump is not None else []  # noqa: S301
        for entry in entries:
            group, number = ":".join(entry["process_group"]), int(entry["collective_seq_id"])
            begun[group] = max(begun.get(group, 0), number)
            if entry.get("retired") or entry["state"] == "completed":
                continue
            frames = [_Frame(frame["name"], frame["filename"], frame["line"]) for frame in entry.get("frames", [])]
            named = entry["profiling_name"].partition(":")[2]
            place = _collective(frames) or Place(operation=named, at=_library_line(frames))
            pending.append(Pending(group=group, number=number, place=place))
    return pending, begun
