import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from full_disk import error_of, files_of, leave_free, refuse_writes, remount
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from trainer_toy import ToyNetwork, toy_recipe

from worldtune.common.errors import WorldtuneError
from worldtune.training.ema import PowerEma
from worldtune.training.errors import TemporaryError
from worldtune.training.gradients import GradientAccumulator, clip, global_norm
from worldtune.training.lease import Lease
from worldtune.training.optimizer import MasterAdamW
from worldtune.training.sharding import trainable_parameters
from worldtune.training.state import TrainState, complete_steps, read_weights
from worldtune.training.store import CheckpointStore


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
    assert store(tmp_path).resume(loaded) is not None
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
    shutil.copytree(good, tmp_path / "step_000000003.doomed")
    assert complete_steps(tmp_path) == [1]
    assert store(tmp_path).resume(new_state()) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]


@pytest.mark.parametrize("harm", ["no record", "no numbers", "no text", "no part", "short part"])
def test_what_was_whole_once_is_kept_aside_where_it_is_damaged(
    tmp_path: Path, single_mesh: DeviceMesh, harm: str
) -> None:
    state = new_state()
    advance(state, steps=1)
    store(tmp_path).save(state)
    advance(state, steps=1)
    newest = store(tmp_path).save(state)
    damage(newest, harm)
    assert complete_steps(tmp_path) == [1]
    resumed = new_state()
    assert store(tmp_path).resume(resumed) is not None
    assert resumed.step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged_step_000000002", "step_000000001"]


def damage(checkpoint: Path, harm: str) -> None:
    record, part = checkpoint / "state.json", next(checkpoint.glob("*.distcp"))
    if harm == "no record":
        record.unlink()
    elif harm == "no numbers":
        record.write_text("[1]")
    elif harm == "no text":
        record.write_bytes(b"\xff" * 9)
    elif harm == "no part":
        part.unlink()
    elif harm == "short part":
        part.write_bytes(part.read_bytes()[:-1])
    else:
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", ["another bit", "short part"])
def test_a_run_does_not_start_over_where_its_only_checkpoint_is_damaged(
    tmp_path: Path, single_mesh: DeviceMesh, harm: str
) -> None:
    state = new_state()
    advance(state, steps=1)
    damage(store(tmp_path).save(state), harm)
    # Nor in a retry.
    for _ in range(2):
        with pytest.raises(WorldtuneError, match=r"all checkpoints are damaged \(damaged_step_000000001\)"):
            store(tmp_path).resume(new_state())
    shutil.rmtree(tmp_path / "damaged_step_000000001")
    assert store(tmp_path).resume(new_state()) is None


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(
    tmp_path: Path, single_mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = new_state()
    store(tmp_path, keep_last=1).save(state)

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    with monkeypatch.context() as patch:
        # What a network file system says where another process reads a file of it.
        patch.setattr(shutil, "rmtree", busy)
        advance(state, steps=1)
        store(tmp_path, keep_last=1).save(state)
        assert "step_000000000.doomed cannot be removed now" in caplog.text
        assert store(tmp_path, keep_last=1).resume(new_state()) is not None
    assert complete_steps(tmp_path) == [1]
    assert store(tmp_path, keep_last=1).resume(new_state()) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ValueError("of no use")])
def test_a_save_that_fails_otherwise_says_why(
    tmp_path: Path, single_mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_path: Path) -> str:
        raise error

    monkeypatch.setattr("worldtune.training.store.sha256_file", fail)
    with pytest.raises(type(error), match=str(error.args[-1])):
        store(tmp_path).save(new_state())
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_resume(tmp_path: Path, single_mesh: DeviceMesh) -> None:
    assert store(tmp_path / "missing").resume(new_state()) is None


def test_full_disk_is_said_before_writing(
    tmp_path: Path, single_mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, 0))
    with pytest.raises(TemporaryError, match="GiB are free"):
        store(tmp_path).save(new_state())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_during_a_checkpoint(
    full_disk: Path, single_mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = new_state()
    remount(full_disk, "size=4m")
    advance(state, steps=1)
    store(full_disk).save(state)
    good = files_of(full_disk)
    advance(state, steps=1)
    usage = namedtuple("usage", "total used free")
    # Another program takes the space after it was looked at.
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, 10**12))
    leave_free(full_disk, 4096)
    message = error_of(lambda: store(full_disk).save(state))
    assert message.startswith(f"error: {full_disk / 'step_000000002'}: No space left on device. Free space")
    assert files_of(full_disk) == good
    assert [path.name for path in full_disk.iterdir()] == ["step_000000001"]
    remount(full_disk, "size=4m")
    store(full_disk).save(state)
    assert sorted(complete_steps(full_disk)) == [1, 2]


@pytest.mark.parametrize("pattern", [r"/\.state\.", r"\.distcp", r"/\.metadata"])
def test_each_file_of_a_checkpoint_on_a_full_disk(
    tmp_path: Path, single_mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    state = new_state()
    advance(state, steps=1)
    store(tmp_path).save(state)
    good = files_of(tmp_path)
    advance(state, steps=1)
    met = refuse_writes(monkeypatch, pattern)
    message = error_of(lambda: store(tmp_path).save(state))
    assert met
    assert message.startswith(f"error: {tmp_path}/step_000000002")
    assert "No space left on device. Free space" in message
    assert files_of(tmp_path) == good


def test_what_another_holder_of_the_lease_writes_is_left_alone(
    tmp_path: Path, single_mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(tmp_path)
    assert lease.try_acquire() is None
    state = new_state()
    record = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").write_text(json.dumps({**record, "token": "another"}))
    partial = tmp_path / "checkpoints" / "step_000000000.partial"
    refuse_writes(monkeypatch, r"/\.state\.")
    lost = CheckpointStore(tmp_path / "checkpoints", keep_last=2, keep_every=0, lease=lease)
    with pytest.raises(TemporaryError, match="not by this process any more"):
        lost.save(state)
    assert partial.is_dir()
    lease.release()


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
