"""A disk that is full while a checkpoint is split or merged."""

from pathlib import Path

import pytest
import torch
from full_disk import error_of, files_of, refuse_writes, remount

from worldtune.checkpoint.splitting import join_checkpoint, merge_checkpoint, split_checkpoint

FULL = "No space left on device. Free space"
NAME = "net.blocks.block0.blocks.0.block.attn.to_out.0.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "x.pt"
    torch.save({NAME: torch.arange(64 * 1024, dtype=torch.float32).reshape(64, 1024)}, path)
    return path


def test_split_on_a_full_disk(source: Path, full_disk: Path) -> None:
    target = full_disk / "parts"
    message = error_of(lambda: split_checkpoint(source, target, 2))
    assert message.startswith(f"error: {target / 'x_model_mp_1.pt'}: {FULL}")
    # Whole pieces of a split without a manifest: nothing takes them for a split.
    assert sorted(files_of(target)) == ["x.pt", "x_model_mp_0.pt"]
    assert list(torch.load(target / "x_model_mp_0.pt", weights_only=True)["model"]) == [NAME]
    remount(full_disk, "size=2m")
    split_checkpoint(source, target, 2)
    assert torch.equal(join_checkpoint(target, "x", 2)[NAME], torch.load(source, weights_only=True)[NAME])


def test_manifest_of_a_split_on_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "parts"
    with monkeypatch.context() as patched:
        assert not refuse_writes(patched, r"\.split\.")
        message = error_of(lambda: split_checkpoint(source, target, 2))
    assert message.startswith(f"error: {target / 'x.split.json'}: {FULL}")
    assert sorted(files_of(target)) == ["x.pt", "x_model_mp_0.pt", "x_model_mp_1.pt"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_merge_on_a_full_disk_leaves_the_older_file(source: Path, full_disk: Path, tmp_path: Path, suffix: str) -> None:
    split = split_checkpoint(source, tmp_path / "parts", 2)
    output = full_disk / f"merged{suffix}"
    output.write_bytes(b"old")
    message = error_of(lambda: merge_checkpoint([split], output))
    assert message.startswith(f"error: {output}: {FULL}")
    assert files_of(full_disk) == {output.name: b"old"}
