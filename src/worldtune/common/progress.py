"""Progress of long work: a bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
logger = logging.getLogger(__name__)


def progress(items: Iterable[Item], label: str, *, every_s: float = 10.0) -> Iterator[Item]:
    """Yield `items`, showing how far it is: a tqdm bar on a terminal, else a line at most each `every_s` seconds."""
    total = len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        yield from tqdm(items, desc=label, total=total)
        return
    last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            logger.info("%s: %d of %s", label, done, total if total is not None else "?")
    logger.info("%s: %d done", label, done)
