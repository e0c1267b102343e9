"""Starting the processes of a training job on one node as torchrun does, with the reason of a failure as the last line.

torchrun ends a failed job with a summary of all processes and a traceback of its own. Here each process leaves its
error in the file that torchrun names for it (see `worldtune.common.script`), and the first one is printed alone, last.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args
from torch.distributed.run import run as start

from worldtune.training.signals import EXIT_STOPPED


def launch(arguments: Sequence[str]) -> int:
    """Start torchrun's processes and wait for them; prints why they failed as one line on stderr.

    Args:
        arguments: those of torchrun.

    Returns:
        0 where all processes ended well, else 1, as torchrun does.
    """
    try:
        start(parse_args(list(arguments)))
    except ChildFailedError as error:
        reason = failure_reason(error.failures)
    except SignalException as error:
        # torchrun has passed the signal on and waited by now.
        reason = f"stopped by {error.sigval.name}; the same command goes on from the last checkpoint"
    else:
        return 0
    sys.stdout.flush()
    print(f"error: {reason}", file=sys.stderr, flush=True)
    return 1


def failure_reason(failures: Mapping[int, ProcessFailure]) -> str:
    """Return why a job failed: the error that a process recorded first, else how the first one ended.

    Args:
        failures: by rank; not empty.
    """
    # torchrun ends the others by SIGTERM once one has failed.
    ended = {
        rank: _how_it_ended(rank, failure)
        for rank, failure in failures.items()
        if _recorded(failure) is None and failure.exitcode != -signal.SIGTERM
    }
    recorded = [error for failure in failures.values() if (error := _recorded(failure)) is not None]
    if recorded:
        first = min(recorded, key=lambda error: int(error["extraInfo"].get("time_ns", 0)))
        # One that was killed may be why the others failed, or may have hung because of them.
        killed = sorted(
            rank for rank, failure in failures.items() if rank in ended and failure.exitcode == -signal.SIGKILL
        )
        stopped = [rank for rank, failure in failures.items() if failure.exitcode == EXIT_STOPPED]
        told = [text for rank, text in ended.items() if rank not in (*killed, *stopped)]
        if killed:
            told.append(
                f"SIGKILL has ended {'rank' if len(killed) == 1 else 'ranks'} {', '.join(map(str, killed))}: torchrun, "
                "since they waited for the one that failed, or a kernel that was out of memory (`dmesg`)"
            )
        return "; ".join([str(first["message"]), *told])
    rank = min(ended or failures)
    return _how_it_ended(rank, failures[rank])


def _how_it_ended(rank: int, failure: ProcessFailure) -> str:
    where = f"the process of rank {rank} (number {failure.pid})"
    if failure.exitcode == EXIT_STOPPED:
        return f"{where} was asked to stop and has saved; the same command goes on from there"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        advice = "; a kernel that is out of memory does so (`dmesg`)" if name == "SIGKILL" else ""
        return f"{where} was ended by {name}{advice}"
    return f"{where} ended with status {failure.exitcode} without a word"


def _recorded(failure: ProcessFailure) -> dict[str, Any] | None:
    message = failure.error_file_data.get("message")
    return message if isinstance(message, dict) and "extraInfo" in message else None
