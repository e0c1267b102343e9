from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
import torch.distributed as dist

from worldtune.common.errors import WorldtuneError
from worldtune.training.errors import TemporaryError
from worldtune.training.main_rank import on_main_rank

FAILURES: dict[str, Exception] = {
    "temporary": TemporaryError("results: 1.0 GiB are free"),
    "final": WorldtuneError("a record is damaged"),
    "disk": OSError(28, "No space left on device", "metrics.jsonl"),
}


def take_part(rank: int, store: str, failing: str, told: "Queue[tuple[int, str, str]]") -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    called = []

    def work() -> str:
        called.append(rank)
        if failing:
            raise FAILURES[failing]
        return "seven"

    try:
        found = on_main_rank(work)
    except (WorldtuneError, OSError) as error:
        told.put((rank, type(error).__name__, str(error)))
    else:
        told.put((rank, "called" if called else "told", found))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("failing", "first", "second"),
    [
        ("", ("called", "seven"), ("told", "seven")),
        ("temporary", *[("TemporaryError", "results: 1.0 GiB are free")] * 2),
        ("final", *[("WorldtuneError", "a record is damaged")] * 2),
        (
            "disk",
            *[(kind, "[Errno 28] No space left on device: 'metrics.jsonl'") for kind in ("OSError", "TemporaryError")],
        ),
    ],
)
def test_all_ranks_have_the_first_ones_result_or_failure(
    tmp_path: Path, failing: str, first: tuple[str, str], second: tuple[str, str]
) -> None:
    context = get_context("fork")
    told: Queue[tuple[int, str, str]] = context.Queue()
    ranks = [context.Process(target=take_part, args=(rank, str(tmp_path / "store"), failing, told)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    found = sorted(told.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    assert found == [(0, *first), (1, *second)]
