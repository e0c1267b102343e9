"""Work on many frames by several threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

MAX_THREADS = 4
"""Threads of one process at most: a node has several loader processes for each GPU."""


def for_each_frame(work: Callable[[int], None], count: int) -> None:
    """Call `work` with each number below `count`, several at a time.

    It pays where libraries (OpenCV, Pillow) do the work and let go of the interpreter meanwhile. Whoever calls stores
    results by number, so that they do not depend on the order. The threads end with the call, so that a process may
    fork between two.
    """
    threads = min(MAX_THREADS, os.cpu_count() or 1, count)
    if threads <= 1:
        for number in range(count):
            work(number)
        return
    with ThreadPoolExecutor(threads) as pool:
        # Raises what a thread raised.
        list(pool.map(work, range(count)))
