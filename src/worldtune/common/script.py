"""What every script does around its one call of the library."""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from worldtune.common.disk import disk_advice
from worldtune.common.errors import WorldtuneError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable with the file in which torchrun looks for the error of a process that it has started."""


def run(main: Callable[[], None]) -> None:
    """Run a script's `main` with plain log lines on stderr.

    A WorldtuneError, or an error of the disk such as a full one, ends it with one last line "error: ..." and status 1.
    A process that torchrun has started leaves its error to the launcher, which prints one for all processes.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # One line a request would drown the progress of a download.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        main()
    except WorldtuneError as error:
        if record_error(str(error)):
            sys.exit(1)
        sys.exit(f"error: {error}")
    except Exception as error:
        advice = disk_advice(error)
        if advice is None:
            message = "".join(traceback.format_exception_only(error)).strip()
            record_error(message, "".join(traceback.format_exception(error)))
            raise
        if record_error(advice):
            sys.exit(1)
        sys.exit(f"error: {advice}")


def record_error(message: str, callstack: str | None = None, path: str | None = None) -> bool:
    """Write an error into the file that torchrun looks for, in its format; returns whether there is one.

    Args:
        message: for people.
        callstack: where it happened; the message where that tells nothing.
        path: the file of another process than this one.
    """
    path = path or os.environ.get(ERROR_FILE)
    if not path:
        return False
    # torchrun knows whole seconds only, in which several processes may fail.
    extra = {"py_callstack": callstack or message, "timestamp": str(int(time.time())), "time_ns": time.time_ns()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
    return True
