"""What every script does around its one call of the library."""

import logging
import sys
from collections.abc import Callable

from worldtune.common.disk import disk_advice
from worldtune.common.errors import WorldtuneError


def run(main: Callable[[], None]) -> None:
    """Run a script's `main` with plain log lines on stderr.

    A WorldtuneError, or an error of the disk such as a full one, ends it with one last line "error: ..." and status 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # One line a request would drown the progress of a download.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        main()
    except WorldtuneError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        advice = disk_advice(error)
        if advice is None:
            raise
        sys.exit(f"error: {advice}")
