"""Splits and merges keep every bit, whatever the shapes, dtypes and degrees."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from worldtune.checkpoint.reading import read_checkpoint
from worldtune.checkpoint.splitting import merge_checkpoint, shard_name, split_checkpoint
from worldtune.parallel.axes import SPLIT_DIMS

DEGREES = [1, 2, 3, 4, 6, 8]
MULTIPLE = 24
"""Of all degrees."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int64, torch.uint8]


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, Tensor]:
    """Tensors of random bits, so NaN and -0.0 among them; some are split, some are whole, some are empty."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    prefix = draw(st.sampled_from(["net.", "base_model.net.", ""]))
    tensors = {}
    for number, suffix in enumerate(draw(st.lists(st.sampled_from([*SPLIT_DIMS, "norm.weight"]), min_size=1))):
        dim = SPLIT_DIMS.get(suffix)
        sizes = st.lists(st.integers(0, 5), min_size=0 if dim is None else dim + 1, max_size=3)
        shape = draw(sizes)
        if dim is not None:
            shape[dim] = MULTIPLE * draw(st.integers(0, 2))
        dtype = draw(st.sampled_from(DTYPES))
        num_bytes = torch.empty(shape, dtype=dtype, device="meta").nbytes
        bits = torch.randint(256, (num_bytes,), dtype=torch.uint8, generator=generator)
        tensors[f"{prefix}block{number}.{suffix}"] = bits.view(dtype).reshape(shape)
    return tensors


def assert_same_bits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(
            found[name].contiguous().reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8)
        )


def piece_of(tensor: Tensor, name: str, degree: int, rank: int) -> Tensor:
    """One rank's piece, cut by the end of the name."""
    for suffix, dim in SPLIT_DIMS.items():
        if name.endswith("." + suffix):
            length = tensor.shape[dim] // degree
            return tensor.split(length, dim)[rank] if length else tensor
    return tensor


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=40, deadline=None)
@given(
    tensors=checkpoints(), degree=st.sampled_from(DEGREES), other=st.sampled_from(DEGREES), in_safetensors=st.booleans()
)
def test_every_bit_is_kept(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], degree: int, other: int, in_safetensors: bool
) -> None:
    folder = tmp_path_factory.mktemp("split")
    source = folder / ("x.safetensors" if in_safetensors else "x.pt")
    if in_safetensors:
        save_file(tensors, source)
    else:
        with open(source, "wb") as file:
            torch.save(tensors, file)
    manifest = split_checkpoint(source, folder / "parts", degree)
    names = [shard_name("x", rank) for rank in range(degree)]
    assert sorted(files_of(folder / "parts")) == sorted(["x.pt", "x.split.json", *names])
    for rank, name in enumerate(names):
        content = torch.load(folder / "parts" / name, weights_only=True)
        assert content["ema"] is None
        assert_same_bits(content["model"], {key: piece_of(tensors[key], key, degree, rank) for key in tensors})
    # The files of the libraries, byte by byte.
    with open(folder / "wanted.pt", "wb") as file:
        torch.save(content, file)
    assert (folder / "wanted.pt").read_bytes() == (folder / "parts" / names[-1]).read_bytes()
    for suffix in (".pt", ".safetensors"):
        output = folder / f"merged{suffix}"
        merge_checkpoint([manifest], output)
        assert_same_bits(read_checkpoint(output), tensors)
        if suffix == source.suffix:
            assert output.read_bytes() == source.read_bytes()
    merge_checkpoint([folder / "parts" / name for name in names], folder / "unlisted.pt")
    assert (folder / "unlisted.pt").read_bytes() == (folder / "merged.pt").read_bytes()
    split_checkpoint(source, folder / "direct", other)
    split_checkpoint(manifest, folder / "again", other)
    assert files_of(folder / "again") == files_of(folder / "direct")
    renamed = folder / "renamed" / source.name
    renamed.parent.mkdir()
    (folder / f"merged{source.suffix}").rename(renamed)
    split_checkpoint(renamed, folder / "parts_of_merged", degree)
    assert files_of(folder / "parts_of_merged") == files_of(folder / "parts")
