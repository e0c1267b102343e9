import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.data import Dataset
from trainer_toy import exit_codes, spawn

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.mesh import build_mesh, sample_group
from worldtune.training.data import BatchReader, Prefetcher
from worldtune.training.order import BatchLayout
from worldtune.training.task import Batch, Sample

NUM_BATCHES = 4
LAYOUT = BatchLayout(micro_batch_size=2, data=1, accumulation=3)


class Work:
    """Notes what is done, in order; a batch is one number that `prepare` multiplies by ten."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.done: list[str] = []
        self.num_read = 0

    def read(self) -> Batch:
        self.done.append(f"read {self.num_read}")
        number = torch.full((1024, 1024), float(self.num_read), device=self.device)
        self.num_read += 1
        return {"number": number, "clip_id": [str(self.num_read - 1)]}

    def prepare(self, batch: Batch) -> Batch:
        self.done.append(f"prepare {batch['clip_id'][0]}")
        assert not torch.is_grad_enabled()
        number = batch["number"]
        if self.device.type == "cuda":
            # So long that a reader that did not wait would see what was there before.
            torch.cuda._sleep(50_000_000)
        return {**batch, "number": number * 10}


def prefetcher(work: Work) -> Prefetcher:
    return Prefetcher(work.read, work.prepare, work.device, num_batches=NUM_BATCHES, ahead=True)


def test_each_batch_is_prepared_one_ahead_and_given_once() -> None:
    work = Work(torch.device("cpu"))
    batches = prefetcher(work)
    assert work.done == []
    for number in range(NUM_BATCHES):
        batch = batches.next()
        assert batch["clip_id"] == [str(number)]
        assert batch["number"].eq(10 * number).all()
        ahead = min(number + 2, NUM_BATCHES)
        assert work.done == [f"{what} {index}" for index in range(ahead) for what in ("read", "prepare")]
    with pytest.raises(StopIteration):
        batches.next()
    assert work.num_read == NUM_BATCHES


def test_without_memory_for_it_nothing_is_prepared_ahead() -> None:
    work = Work(torch.device("cpu"))
    batches = Prefetcher(work.read, work.prepare, work.device, num_batches=NUM_BATCHES, ahead=False)
    for number in range(NUM_BATCHES):
        assert batches.next()["clip_id"] == [str(number)]
        assert work.num_read == number + 1
    with pytest.raises(StopIteration):
        batches.next()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_reads_a_batch_only_when_it_is_ready_and_its_memory_stays() -> None:
    work = Work(torch.device("cuda"))
    batches = prefetcher(work)
    sums = []
    for _ in range(NUM_BATCHES):
        batch = batches.next()
        # The computation begins late, when the other stream has made the next batch and could take this one's memory.
        torch.cuda._sleep(200_000_000)
        sums.append(batch["number"].double().sum())
        del batch
    assert [total.item() for total in sums] == [10.0 * number * 1024**2 for number in range(NUM_BATCHES)]


class Ordinals(Dataset[Sample]):
    """Samples that are their number."""

    def __getitem__(self, ordinal: int) -> Sample:
        return {"clip_id": str(ordinal), "ordinal": torch.tensor(ordinal)}


class OpenReader(Protocol):
    """Makes a reader of a group of one rank that ends with the test; `options` are those that differ."""

    def __call__(self, first_step: int, *, last_step: int = 9, **options: Any) -> BatchReader: ...


def make_reader(mesh: DeviceMesh, first_step: int, last_step: int = 9, **options: Any) -> BatchReader:
    chosen = {"layout": LAYOUT, "dataset_digest": "d1", "num_workers": 0, "data_rank": 0} | options
    layout, device = chosen.pop("layout"), chosen.pop("device", torch.device("cpu"))
    return BatchReader(
        Ordinals, layout, sample_group(mesh), device, first_step=first_step, last_step=last_step, **chosen
    )


@pytest.fixture
def reader(single_mesh: DeviceMesh) -> Iterator[OpenReader]:
    with contextlib.ExitStack() as readers:

        def open_reader(first_step: int, *, last_step: int = 9, **options: Any) -> BatchReader:
            made = make_reader(single_mesh, first_step, last_step, **options)
            readers.callback(made.close)
            return made

        yield open_reader


def read_steps(batches: BatchReader | Prefetcher, num_steps: int) -> list[list[int]]:
    return [batches.next()["ordinal"].tolist() for _ in range(num_steps * LAYOUT.accumulation)]


def saved(batches: BatchReader, step: int) -> list[dict[str, Any]]:
    """The position as a checkpoint's state.json gives it back."""
    loaded: list[dict[str, Any]] = json.loads(json.dumps([batches.state_dict(step)]))
    return loaded


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_reader_goes_on_behind_the_last_completed_step(reader: OpenReader, num_workers: int) -> None:
    whole = read_steps(reader(0), 9)
    assert whole == [[2 * number, 2 * number + 1] for number in range(27)]
    first = reader(0, num_workers=num_workers)
    # Each step's first micro-batch is read while the step before is trained on.
    ahead = Prefetcher(first.next, lambda batch: batch, torch.device("cpu"), num_batches=first.num_batches, ahead=True)
    assert read_steps(ahead, 4) == whole[:12]
    position = saved(first, 4)
    assert (position[0]["next_ordinal"], position[0]["dataset_digest"]) == (24, "d1")
    second = reader(4, num_workers=num_workers)
    second.load_state_dict(position)
    assert read_steps(second, 2) == whole[12:18]
    # Positions count from the run's start, however often it was resumed.
    third = reader(6, num_workers=num_workers)
    third.load_state_dict(saved(second, 6))
    assert read_steps(third, 3) == whole[18:]
    with pytest.raises(StopIteration):
        third.next()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_gpu_is_handed_what_goes_through_pinned_memory(reader: OpenReader, num_workers: int) -> None:
    options = {"num_workers": num_workers, "device": torch.device("cuda")}
    first = reader(0, **options)
    assert read_steps(first, 2)[-1] == [10, 11]
    second = reader(2, **options)
    second.load_state_dict(saved(first, 2))
    batch = second.next()["ordinal"]
    assert batch.is_cuda
    assert batch.tolist() == [12, 13]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_finished_run_goes_on_when_its_last_step_is_raised(reader: OpenReader, num_workers: int) -> None:
    first = reader(0, last_step=2, num_workers=num_workers)
    read_steps(first, 2)
    longer = reader(2, num_workers=num_workers)
    longer.load_state_dict(saved(first, 2))
    assert read_steps(longer, 1) == [[12, 13], [14, 15], [16, 17]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_position_is_told_before_anything_is_read(reader: OpenReader, num_workers: int) -> None:
    position = saved(reader(5, num_workers=num_workers), 5)
    again = reader(5, num_workers=num_workers)
    again.load_state_dict(position)
    assert read_steps(again, 1) == [[30, 31], [32, 33], [34, 35]]


@pytest.mark.parametrize(
    "changed",
    [
        {"num_workers": 1},
        {"layout": BatchLayout(micro_batch_size=2, data=3, accumulation=1), "data_rank": 2},
        {"layout": BatchLayout(micro_batch_size=1, data=1, accumulation=6)},
    ],
    ids=["workers", "data ranks", "micro-batches"],
)
def test_under_another_layout_the_step_tells_the_samples(reader: OpenReader, changed: dict[str, Any]) -> None:
    first = reader(0)
    read_steps(first, 2)
    other = reader(2, **changed)
    other.load_state_dict(saved(first, 2))
    layout = changed.get("layout", LAYOUT)
    assert other.next()["ordinal"].tolist() == layout.ordinals(2, 0, changed.get("data_rank", 0))


def test_positions_of_several_data_ranks_are_told_apart(reader: OpenReader) -> None:
    layout = BatchLayout(micro_batch_size=1, data=2, accumulation=2)
    ranks = [reader(0, layout=layout, data_rank=rank) for rank in range(2)]
    for rank in ranks:
        for _ in range(2 * 2):
            rank.next()
    positions = [position for rank in ranks for position in saved(rank, 2)]
    assert [position["data_rank"] for position in positions] == [0, 1]
    for number in range(2):
        resumed = reader(2, layout=layout, data_rank=number)
        resumed.load_state_dict(positions)
        assert resumed.next()["ordinal"].tolist() == [8 + number]


def test_a_position_of_another_dataset_is_refused(reader: OpenReader) -> None:
    first = reader(0)
    read_steps(first, 1)
    for changed in ({}, {"num_workers": 1}):
        other = reader(1, dataset_digest="d2", **changed)
        with pytest.raises(WorldtuneError, match=r"dataset with digest d1, but the dataset's digest is d2"):
            other.load_state_dict(saved(first, 1))


def test_a_position_of_another_step_is_refused(reader: OpenReader) -> None:
    first = reader(0)
    read_steps(first, 1)
    with pytest.raises(WorldtuneError, match=r"sample 6, but step 2 begins with sample 12.*damaged"):
        reader(2).load_state_dict(saved(first, 1))


def test_reading_draws_nothing_from_the_default_generator(reader: OpenReader) -> None:
    before = torch.random.get_rng_state()
    read_steps(reader(0, num_workers=1), 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def worker_pids() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    # A zombie has ended; its new parent may not have noticed.
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_signal_to_all_processes_of_a_job_step_ends_no_loader(reader: OpenReader) -> None:
    batches = reader(0, num_workers=2)
    read_steps(batches, 1)
    for pid in worker_pids():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
    assert read_steps(batches, 8)[-1] == [52, 53]


def read_and_die(folder: str, kill_at: int) -> None:
    """Read steps and save each position, from the last one on; killed in the step `kill_at`, as if by the machine."""
    places = Path(folder)
    step = len(list(places.glob("position_*.json")))
    batches = make_reader(build_mesh("cpu"), step, last_step=6, num_workers=2)
    if step:
        batches.load_state_dict(json.loads((places / f"position_{step}.json").read_text()))
    while step < 6:
        rows = []
        for _ in range(LAYOUT.accumulation):
            rows.append(batches.next()["ordinal"].tolist())
            if step == kill_at:
                (places / "workers.json").write_text(json.dumps(worker_pids()))
                os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        (places / f"rows_{step}.json").write_text(json.dumps(rows))
        (places / f"position_{step}.json").write_text(json.dumps(saved(batches, step)))
    batches.close()


def test_a_reader_that_was_killed_goes_on_with_the_same_samples(tmp_path: Path) -> None:
    assert exit_codes([spawn(read_and_die, str(tmp_path), 3)]) == [-signal.SIGKILL]
    assert len(list(tmp_path.glob("rows_*.json"))) == 3
    workers = json.loads((tmp_path / "workers.json").read_text())
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    assert exit_codes([spawn(read_and_die, str(tmp_path), -1)]) == [0]
    rows = [json.loads((tmp_path / f"rows_{step}.json").read_text()) for step in range(1, 7)]
    assert [ordinal for step in rows for batch in step for ordinal in batch] == list(range(36))
