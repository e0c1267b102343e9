import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from trainer_toy import ToyNetwork, toy_recipe

from worldtune.common.errors import WorldtuneError
from worldtune.training.ema import PowerEma
from worldtune.training.errors import TemporaryError
from worldtune.training.gradients import GradientAccumulator, clip, global_norm
from worldtune.training.optimizer import MasterAdamW
from worldtune.training.sharding import trainable_parameters
from worldtune.training.state import CheckpointStore, TrainState, complete_steps, read_weights


def new_state(dtype: torch.dtype = torch.float32) -> TrainState:
    recipe = toy_recipe()
    parameters = trainable_parameters(ToyNetwork(dtype))
    optimizer = MasterAdamW(parameters, recipe.optimizer)
    return TrainState(parameters, optimizer, PowerEma(optimizer.live, recipe.ema.rates))


def store(folder: Path, keep_last: int = 2, keep_every: int = 0) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=keep_last, keep_every=keep_every, lease=None)


def advance(state: TrainState, *, steps: int) -> None:
    for _ in range(steps):
        gradients = {name: torch.ones_like(master) for name, master in state.optimizer.masters.items()}
        state.optimizer.step(gradients, 0.1)
        state.ema.update(state.step)
        state.step += 1


def test_everything_comes_back(tmp_path: Path, single_mesh: DeviceMesh) -> None:
    saved = new_state(torch.bfloat16)
    advance(saved, steps=3)
    saved.skipped, saved.skipped_in_a_row = 4, 1
    store(tmp_path).save(saved)
    loaded = new_state(torch.bfloat16)
    assert store(tmp_path).resume(loaded)
    assert loaded.numbers() == saved.numbers()
    assert loaded.tensors().keys() == saved.tensors().keys()
    assert all(torch.equal(tensor, saved.tensors()[name]) for name, tensor in loaded.tensors().items())
    for name, parameter in loaded.parameters.items():
        assert torch.equal(parameter, saved.parameters[name])
        assert parameter.dtype == torch.bfloat16
    assert not any("frozen" in name for name in saved.tensors())


def test_weights_are_read_by_one_process(tmp_path: Path, single_mesh: DeviceMesh) -> None:
    state = new_state()
    advance(state, steps=2)
    path = store(tmp_path).save(state)
    raw = read_weights(path, None)
    assert raw.keys() == state.parameters.keys()
    assert all(torch.equal(tensor, state.optimizer.masters[name]) for name, tensor in raw.items())
    averaged = read_weights(path, 0.05)
    assert all(torch.equal(tensor, state.ema.averages[0.05][name]) for name, tensor in averaged.items())
    with pytest.raises(WorldtuneError, match=r"average of rate 0\.2"):
        read_weights(path, 0.2)
    with pytest.raises(WorldtuneError, match="no whole checkpoint"):
        read_weights(tmp_path / "step_000000009", None)


def test_retention(tmp_path: Path, single_mesh: DeviceMesh) -> None:
    state = new_state()
    for _ in range(6):
        advance(state, steps=10)
        store(tmp_path, keep_last=2, keep_every=20).save(state)
    assert sorted(complete_steps(tmp_path)) == [20, 40, 50, 60]
    assert len(list(tmp_path.iterdir())) == 4


def test_torn_checkpoints_are_removed(tmp_path: Path, single_mesh: DeviceMesh) -> None:
    state = new_state()
    advance(state, steps=1)
    good = store(tmp_path).save(state)
    shutil.copytree(good, tmp_path / "step_000000002.partial")
    shutil.copytree(good, tmp_path / "step_000000003")
    (tmp_path / "step_000000003" / "state.json").unlink()
    short = tmp_path / "step_000000004"
    shutil.copytree(good, short)
    shard = next(short.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert complete_steps(tmp_path) == [1]
    assert store(tmp_path).resume(new_state())
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]


def test_nothing_to_resume(tmp_path: Path, single_mesh: DeviceMesh) -> None:
    assert not store(tmp_path / "missing").resume(new_state())


def test_full_disk_is_said_before_writing(
    tmp_path: Path, single_mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, 0))
    with pytest.raises(TemporaryError, match="GiB are free"):
        store(tmp_path).save(new_state())
    assert list(tmp_path.iterdir()) == []


def test_state_is_readable_for_people(tmp_path: Path, single_mesh: DeviceMesh) -> None:
    state = new_state()
    advance(state, steps=1)
    record = json.loads((store(tmp_path).save(state) / "state.json").read_text())
    assert record["step"] == 1
    assert record["update_counts"]["dead.weight"] == 1


def test_accumulation_and_clipping(single_mesh: DeviceMesh) -> None:
    parameters = {name: nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)) for name in ("a", "b", "dead")}
    accumulator = GradientAccumulator(parameters, single_mesh)
    # In bfloat16 256 + 1 is 256.
    for value in (256.0, 1.0, 1.0):
        parameters["a"].grad = torch.full((3,), value, dtype=torch.bfloat16)
        parameters["b"].grad = torch.zeros(3, dtype=torch.bfloat16)
        accumulator.add()
    gradients = accumulator.finish()
    assert gradients.keys() == {"a", "b"}
    assert gradients["a"].tolist() == [258.0] * 3
    norm = global_norm(gradients, parameters, single_mesh).item()
    assert norm == pytest.approx(258.0 * 3**0.5)
    clip(gradients, norm, 1.0)
    assert global_norm(gradients, parameters, single_mesh).item() == pytest.approx(1.0)
    clip(gradients, 0.5, 1.0)
    assert global_norm(gradients, parameters, single_mesh).item() == pytest.approx(1.0)
    assert accumulator.finish() == {}
