import pytest
import torch

from worldtune.training.data import Prefetcher
from worldtune.training.task import Batch

NUM_BATCHES = 4


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
