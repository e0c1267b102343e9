"""What every script does around its one call of the library."""

import logging
import sys
from collections.abc import Callable

from worldtune.common.errors import WorldtuneError


def run(main: Callable[[], None]) -> None:
    """Run a script's `main` with plain log lines on stderr; a WorldtuneError ends it with its message and status 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # One line a request would drown the progress of a download.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        main()
    except WorldtuneError as error:
        sys.exit(f"error: {error}")
