"""Reading checkpoints that others wrote: a damaged file is named, however it is damaged."""

import random
from pathlib import Path

import pytest
import torch

from worldtune.checkpoint.reading import load_pickled
from worldtune.common.errors import WorldtuneError


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pickles_give_named_errors(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "mean_std.pt"
    torch.save((torch.zeros(16, 5), torch.ones(16, 5)), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    draw = random.Random(0)
    messages = []
    for number in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        if number % 3 == 0:
            damaged = damaged[: draw.randrange(len(whole))]
        path.write_bytes(damaged)
        try:
            load_pickled(path)
        except WorldtuneError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(path) in message for message in messages)
