"""A T5 encoder on each of several devices of a node, a process each. n tokens, C channels."""

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from worldtune.annotate.pretrained import check_type, reading
from worldtune.annotate.t5 import NETWORK, Precision, TextEmbedding, TextEncoder
from worldtune.common.errors import WorldtuneError

TEXTS_PER_TURN = 64
"""Most texts that a process takes at once; it cuts them into batches of about equal length."""
TURNS_PER_DEVICE = 4
"""Turns that there are for each device where texts are few, so that all end at about the same time."""
WAITING_TURNS = 2
"""Turns a device that are given out at once: more would only fill memory with results."""

Encoded = list[tuple[int, TextEmbedding]]


class ParallelTextEncoder:
    """What TextEncoder does, by several processes; each loads the encoder when it gets its first texts."""

    def __init__(self, folder: Path, devices: Sequence[str], precision: Precision) -> None:
        """Take the folder of the encoder, a device for each process, such as "cuda:0", and the type to compute in.

        Nothing is loaded yet.

        Raises:
            WorldtuneError: the folder does not hold a T5 encoder.
        """
        self.folder = folder
        self.devices = tuple(devices)
        self.precision = precision
        config = check_type(folder, "t5", NETWORK)
        with reading(folder, NETWORK):
            self.channels = int(config["d_model"])

    def encode(self, texts: Sequence[str], max_tokens: int) -> Iterator[tuple[int, TextEmbedding]]:
        """Yield (position in `texts`, embedding) for each text, in the order in which they are done.

        Raises:
            WorldtuneError: the encoder cannot be loaded, or a process died.
        """
        context = multiprocessing.get_context("spawn")
        devices: SimpleQueue[str] = context.SimpleQueue()
        for device in self.devices:
            devices.put(device)
        pool = ProcessPoolExecutor(len(self.devices), context, _start, (self.folder, devices, self.precision))
        turns = iter(self._turns(texts))
        running: set[Future[Encoded]] = set()
        try:
            for turn in turns:
                running.add(pool.submit(_encode, [(index, texts[index]) for index in turn], max_tokens))
                if len(running) >= WAITING_TURNS * len(self.devices):
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        except BrokenProcessPool as error:
            raise WorldtuneError(
                f"a process that embeds texts on {', '.join(self.devices)} ended without a word; it may have had too "
                "little memory. What was embedded is kept. Give the job more memory, or set cluster.text_gpus to 1."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _turns(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Cut the texts, the longest first, into turns: the shortest turns come last, when devices wait for the end."""
        order = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
        size = math.ceil(len(texts) / (TURNS_PER_DEVICE * len(self.devices)))
        size = max(1, min(size, TEXTS_PER_TURN))
        for first in range(0, len(order), size):
            yield order[first : first + size]


_folder: Path
_device: str
_precision: Precision
_encoder: TextEncoder | None = None


def _start(folder: Path, devices: "SimpleQueue[str]", precision: Precision) -> None:
    global _folder, _device, _precision
    _folder, _device, _precision = folder, devices.get(), precision


def _encode(texts: list[tuple[int, str]], max_tokens: int) -> Encoded:
    global _encoder
    if _encoder is None:
        # Not when the process starts, where an error would break the pool and lose its words.
        _encoder = TextEncoder(_folder, _device, _precision)
    encoded = _encoder.encode([text for _, text in texts], max_tokens)
    return [(texts[index][0], embedding) for index, embedding in encoded]
