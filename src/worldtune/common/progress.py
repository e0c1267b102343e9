"""Progress of long work: a bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
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


@contextmanager
def step_progress(label: str, total: int, *, done: int, is_shown: bool) -> Iterator[Callable[[int, str], None]]:
    """Give a function that shows how far steps are, and a text: a tqdm bar on a terminal, else a line a call.

    Args:
        label: what is counted.
        total: number of the last step.
        done: number of the step that was done before.
        is_shown: whether this process is the one that shows a bar; its function alone is called.
    """
    if not (is_shown and sys.stderr.isatty()):
        yield lambda step, text: logger.info("%s %d/%d  %s", label, step, total, text)
        return
    # Imported late: in a notebook it warns of widgets that are missing, which nobody wants to see.
    from tqdm.contrib.logging import logging_redirect_tqdm

    bar_format = "{desc} {n_fmt}/{total_fmt} |{bar}| {postfix}"
    with (
        logging_redirect_tqdm(),
        tqdm(desc=label, total=total, initial=done, bar_format=bar_format, dynamic_ncols=True) as bar,
    ):

        def show(step: int, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(step - bar.n)

        yield show
