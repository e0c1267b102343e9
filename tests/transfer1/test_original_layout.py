import shutil
from pathlib import Path

import pytest
import torch
from tiny_world import tiny_inputs, tiny_recipe

from worldtune.checkpoint.splitting import join_checkpoint, merge_checkpoint, split_checkpoint
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.parallel.axes import shard, split_dim
from worldtune.parallel.mesh import build_mesh
from worldtune.training.state import folder_name, read_weights
from worldtune.transfer1 import original_layout
from worldtune.transfer1.original_layout import find_attempt, write_original_layout
from worldtune.transfer1.task import build_task


@pytest.fixture
def written(trained_run: Path, tiny_world: Path) -> tuple[Path, Path]:
    """The finished run's last checkpoint, and the trainer's file of the same in the original's layout for 2 ranks."""
    attempt = find_attempt(trained_run, None)
    target = tiny_world / "checkpoints" / "mine" / "edge"
    path = write_original_layout(attempt, target, step=None, degree=2, checkpoints_dir=tiny_world / "checkpoints")
    return attempt / "checkpoints" / folder_name(2), path


def test_files_are_the_originals(written: tuple[Path, Path]) -> None:
    checkpoint, path = written
    assert sorted(file.name for file in path.parent.glob("iter*")) == [
        "iter_000000002.pt",
        "iter_000000002_model_mp_0.pt",
        "iter_000000002_model_mp_1.pt",
        "iter_000000002_trained_data_record.json",
    ]
    assert torch.load(path, weights_only=True) == {"grad_scaler": {}, "iteration": 2}
    raw, average = read_weights(checkpoint, None), read_weights(checkpoint, 0.1)
    for rank in range(2):
        content = torch.load(path.with_name(f"iter_000000002_model_mp_{rank}.pt"), weights_only=True)
        assert content["trained_data_record"] == {"image": 0, "video": 2, "iteration": 2}
        buffers = {"net.pos_embedder.seq", "logvar.0.freqs", "logvar.0.phases", "logvar.1.weight"}
        assert content["model"].keys() == {f"net.{name}" for name in raw} | buffers
        assert content["ema"].keys() == {f"net.{name}".replace(".", "-") for name in average}
        for name, tensor in raw.items():
            piece = shard(tensor, split_dim(name), 2, rank, name)
            assert torch.equal(content["model"][f"net.{name}"], piece), name
            averaged = content["ema"]["net-" + name.replace(".", "-")]
            assert torch.equal(averaged, shard(average[name], split_dim(name), 2, rank, name)), name
            assert averaged.untyped_storage().nbytes() == averaged.nbytes, "a view would carry the whole tensor"


def test_the_layout_merges_and_splits_again(written: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, path = written
    pieces = sorted(path.parent.glob("iter_*_model_mp_*.pt"))
    for weights, rate in (("raw", None), ("ema", 0.1)):
        merge_checkpoint(pieces, tmp_path / f"{weights}.pt", "raw" if weights == "raw" else "ema")
        merged = torch.load(tmp_path / f"{weights}.pt", weights_only=True)
        expected = read_weights(checkpoint, rate)
        assert all(torch.equal(merged[f"net.{name}"], tensor) for name, tensor in expected.items())
    split_checkpoint(path, tmp_path / "checkpoints_tp_1", 1)
    joined = join_checkpoint(tmp_path / "checkpoints_tp_1", path.stem, 1)
    assert joined.keys() == {f"net.{name}" for name in read_weights(checkpoint, 0.1)}


@pytest.mark.usefixtures("own_process_group")
def test_a_run_starts_from_it(written: tuple[Path, Path], tiny_world: Path) -> None:
    checkpoint, path = written
    split_checkpoint(path, path.parent / "checkpoints_tp_1", 1)
    recipe = tiny_recipe(checkpoints={"control": "mine/edge/iter_000000002.pt"})
    task = build_task(recipe, tiny_inputs(tiny_world, recipe), build_mesh("cpu"), torch.device("cpu"))
    average = read_weights(checkpoint, 0.1)
    for name, parameter in task.trainable.named_parameters():
        assert torch.equal(parameter, average[name]), name
    assert read_json(path.parent / "checkpoints_tp_1" / "iter_000000002.split.json")["degree"] == 1


def test_what_is_missing_is_named(trained_run: Path, tiny_world: Path, tmp_path: Path) -> None:
    attempt = find_attempt(trained_run, None)
    with pytest.raises(WorldtuneError, match=r"no whole checkpoint of step 7; expected one of: 2"):
        write_original_layout(attempt, tmp_path, step=7, degree=1, checkpoints_dir=tiny_world / "checkpoints")
    with pytest.raises(WorldtuneError, match=r"there is no attempt 0123; expected --attempt with one of: \w{16}"):
        find_attempt(trained_run, "0123")
    with pytest.raises(WorldtuneError, match="cannot be cut into 3 equal pieces"):
        write_original_layout(attempt, tmp_path, step=2, degree=3, checkpoints_dir=tiny_world / "checkpoints")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_goes_while_it_is_read(
    trained_run: Path, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = tmp_path / "attempt"
    shutil.copytree(find_attempt(trained_run, None), attempt)
    checkpoint = attempt / "checkpoints" / folder_name(2)

    def removed_by_the_run(path: Path, rate: float | None) -> dict[str, torch.Tensor]:
        shutil.rmtree(checkpoint)
        return read_weights(path, rate)

    monkeypatch.setattr(original_layout, "read_weights", removed_by_the_run)
    with pytest.raises(WorldtuneError, match=r"step_000000002 (was removed while|is no whole checkpoint)"):
        write_original_layout(attempt, tmp_path, step=None, degree=2, checkpoints_dir=tiny_world / "checkpoints")


def test_a_damaged_checkpoint_is_not_exported(trained_run: Path, tiny_world: Path, tmp_path: Path) -> None:
    attempt = tmp_path / "attempt"
    shutil.copytree(find_attempt(trained_run, None), attempt)
    shard = next((attempt / "checkpoints" / folder_name(2)).glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(WorldtuneError, match=rf"{shard.name} is damaged: its SHA-256 is"):
        write_original_layout(attempt, tmp_path, step=None, degree=2, checkpoints_dir=tiny_world / "checkpoints")


def test_a_run_that_is_misspelt(trained_run: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"tiny_rum has no attempt; .*results/ has .*tiny_run"):
        find_attempt(trained_run.parent / "tiny_rum", None)
