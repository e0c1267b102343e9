"""Reading checkpoints that others wrote: a damaged file is named, however it is damaged."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from worldtune.checkpoint.reading import load_pickled
from worldtune.checkpoint.splitting import split_checkpoint
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


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content", [{"net.a": torch.ones(2), "b": Command()}, {"model": {"a": Command()}, "ema": None}, Command()]
)
def test_a_checkpoint_that_would_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "base.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WorldtuneError, match=r"base\.pt holds more than tensors and plain values.*posix\.system.*safetensors"
    ) as caught:
        split_checkpoint(path, tmp_path / "parts", 2)
    # PyTorch's own words say how to run what is in the file.
    assert "weights_only" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["base.pt"]
