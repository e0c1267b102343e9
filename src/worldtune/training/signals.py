"""Requests to stop: a signal to any rank, or a file in the attempt's folder.

Timeline of a time limit (SLURM with --signal=TERM@120), of a preemption, of `scancel` or `scancel --signal=USR1`:

1. SLURM sends the signal to every process of the step: snakemake around the command, torchrun, the ranks, the loaders.
   Snakemake waits for its command (rules/common.smk has it outlive SIGUSR1), loaders ignore it; torchrun passes it on
   to its ranks once more and waits (launch.sh gives it ten minutes instead of 30 s).
2. A rank's handler only sets a flag: whatever runs goes on.
3. At the end of the optimizer step the ranks agree: one that has the flag is enough. They write a checkpoint and leave
   with `EXIT_STOPPED`, which is not 0, so that a scheduler's retry brings the run back.
4. SLURM kills what is left at its limit: the time limit, the partition's GraceTime after a preemption, KillWait where
   there is none and after `scancel`. A checkpoint in the making is then a torn one, which the next start removes.
"""

import signal
from pathlib import Path
from types import FrameType

EXIT_STOPPED = 75
STOP_FILE = "stop"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Remembers that this process was asked to stop."""

    def __init__(self, attempt: Path) -> None:
        """Take over the signals for the rest of the process's life; also look at the file `stop` in `attempt`."""
        self._file = attempt / STOP_FILE
        self._signal: str | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name

    def reason(self) -> str | None:
        """Return why this process should stop, or None."""
        if self._signal is not None:
            return self._signal
        if self._file.exists():
            return f"{self._file} (delete it to go on)"
        return None
