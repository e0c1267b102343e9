import io
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from worldtune.checkpoint.reading import CheckpointFile, read_checkpoint
from worldtune.checkpoint.splitting import (
    join_checkpoint,
    join_unlisted,
    merge_checkpoint,
    read_shard,
    shard_name,
    split_checkpoint,
)
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, sha256_file
from worldtune.parallel.axes import shard, split_dim

ROOT = Path(__file__).parents[2]


def make_tensors(seed: int = 0, dtype: torch.dtype = torch.float32, heads: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attention, mlp = "net.blocks.block0.blocks.0.block.attn.", "net.blocks.block0.blocks.2.block."
    shapes = {
        attention + "to_q.0.weight": (2 * heads, 3),
        attention + "to_q.1.weight": (2,),
        attention + "to_out.0.weight": (3, 2 * heads),
        mlp + "layer1.weight": (heads, 3),
        mlp + "layer2.weight": (3, heads),
        "net.x_embedder.proj.1.weight": (5, 3),
        "logvar.1.weight": (1, 4),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    degree=st.sampled_from([1, 2, 4, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    prefix=st.sampled_from(["", "base_model."]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, seed: int, degree: int, dtype: torch.dtype, prefix: str
) -> None:
    folder = tmp_path_factory.mktemp("split")
    tensors = {prefix + name: tensor for name, tensor in make_tensors(seed, dtype).items()}
    manifest = split_checkpoint(save(folder / "full" / "x.pt", tensors), folder / "parts", degree)
    assert manifest == folder / "parts" / "x.split.json"
    assert_equal(join_checkpoint(folder / "parts", "x", degree), tensors)
    merge_checkpoint([manifest], folder / "merged.pt")
    assert_equal(read_checkpoint(folder / "merged.pt"), tensors)


@pytest.mark.parametrize(("first", "second"), [(8, 4), (4, 8), (8, 1), (2, 8)])
def test_a_split_of_a_split_equals_the_direct_one(tmp_path: Path, first: int, second: int) -> None:
    source = save(tmp_path / "checkpoints" / "owner" / "repo" / "x.pt", make_tensors())
    direct = split_checkpoint(source, tmp_path / "direct", second)
    again = split_checkpoint(split_checkpoint(source, tmp_path / "first", first), tmp_path / "again", second)
    assert read_json(direct) == read_json(again)
    assert read_json(direct)["source"] == "owner/repo/x.pt"
    assert read_json(direct)["source_sha256"] == sha256_file(source)
    for name, digest in read_json(direct)["files"].items():
        assert sha256_file(tmp_path / "again" / name) == digest


def test_layout_and_sizes(tmp_path: Path) -> None:
    tensors = make_tensors(heads=4096)
    split_checkpoint(save(tmp_path / "x.pt", tensors), tmp_path / "parts", 8)
    assert torch.load(tmp_path / "parts" / "x.pt", weights_only=True) == {"grad_scaler": {}, "iteration": 0}
    content = torch.load(tmp_path / "parts" / "x_model_mp_3.pt", weights_only=True)
    assert content["ema"] is None
    name = "net.blocks.block0.blocks.0.block.attn.to_out.0.weight"
    assert torch.equal(content["model"][name], tensors[name][:, 3 * 1024 : 4 * 1024])
    # Saved views would take the full tensors with them.
    assert (tmp_path / "parts" / "x_model_mp_3.pt").stat().st_size < (tmp_path / "x.pt").stat().st_size / 6


def test_files_of_another_degree_are_refused(tmp_path: Path) -> None:
    manifest = split_checkpoint(save(tmp_path / "x.pt", make_tensors()), tmp_path / "parts", 4)
    for read in (
        lambda: join_checkpoint(tmp_path / "parts", "x", 2),
        lambda: read_shard(tmp_path / "parts", "x", 8, 0),
    ):
        with pytest.raises(WorldtuneError, match=r"split for 4 ranks, and \d are wanted"):
            read()
    split_checkpoint(tmp_path / "x.pt", tmp_path / "other", 2)
    (tmp_path / "other" / shard_name("x", 1)).replace(tmp_path / "parts" / shard_name("x", 1))
    with pytest.raises(WorldtuneError, match=r"to_q\.0\.weight"):
        read_shard(tmp_path / "parts", "x", 4, 1)
    with pytest.raises(WorldtuneError, match="not the file that was written"):
        merge_checkpoint([manifest], tmp_path / "merged.pt")


def test_a_tensor_that_cannot_be_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"layer1\.weight.*3 equal pieces"):
        split_checkpoint(save(tmp_path / "x.pt", {"net.layer1.weight": torch.zeros(8, 3)}), tmp_path / "parts", 3)
    with pytest.raises(WorldtuneError, match=r"layer2\.weight has shape \(8,\): axis 1"):
        split_checkpoint(save(tmp_path / "x.pt", {"net.layer2.weight": torch.zeros(8)}), tmp_path / "parts", 2)
    assert not (tmp_path / "parts" / "x.split.json").exists()


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    source = save(tmp_path / "x.pt", make_tensors())
    with pytest.raises(WorldtuneError, match="own folder"):
        split_checkpoint(source, tmp_path, 2)
    assert_equal(read_checkpoint(source), make_tensors())


def test_files_without_a_manifest(tmp_path: Path) -> None:
    split_checkpoint(save(tmp_path / "x.pt", make_tensors()), tmp_path / "parts", 2)
    files = [tmp_path / "parts" / shard_name("x", rank) for rank in range(2)]
    assert_equal(join_unlisted(files), make_tensors())
    content = torch.load(files[1], weights_only=True)
    content["model"]["net.x_embedder.proj.1.weight"] += 1
    torch.save(content, files[1])
    with pytest.raises(WorldtuneError, match=r"x_embedder\.proj\.1\.weight differs"):
        join_unlisted(files)


def test_containers(tmp_path: Path) -> None:
    tensors = make_tensors()
    extra = {
        "net.blocks.block0.attn.attn_op._extra_state": io.BytesIO(b"\x80\x04N."),
        "net.n._extra_state": torch.empty(0),
    }
    dashed = {name.replace(".", "-"): tensor for name, tensor in tensors.items()}
    other = {"net.other": torch.ones(1)}
    for content in (
        tensors,
        OrderedDict(tensors | extra),
        {"model": OrderedDict(tensors | extra), "ema": None},
        {"model": other, "ema": dashed, "trained_data_record": {"image": 0}},
    ):
        assert_equal(read_checkpoint(save(tmp_path / "x.pt", content)), tensors)
    torch.save(tensors | extra, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_equal(read_checkpoint(tmp_path / "old.pt"), tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    names = sorted(tensors)
    assert_equal(read_checkpoint(tmp_path / "x.safetensors"), {name: tensors[name] for name in names})
    for part, chosen in (("a", names[:3]), ("b", names[3:])):
        save_file({name: tensors[name] for name in chosen}, tmp_path / f"{part}.safetensors")
    index = {"weight_map": {name: "a.safetensors" if name in names[:3] else "b.safetensors" for name in names}}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    assert_equal(read_checkpoint(tmp_path / "x.safetensors.index.json"), {name: tensors[name] for name in names})


def write_training_files(folder: Path, *, has_average: bool) -> tuple[list[Path], dict[str, Tensor], dict[str, Tensor]]:
    """Files of the original's training for 2 ranks; returns them, the raw weights and their average."""
    raw = make_tensors(0, torch.bfloat16) | {
        "net.pos_embedder.seq": torch.arange(8.0),
        "logvar.0.freqs": torch.randn(4),
        "logvar.0.phases": torch.randn(4),
    }
    average = {name: tensor for name, tensor in make_tensors(1).items() if name.startswith("net.")}
    folder.mkdir()
    files = []
    for rank in range(2):
        pieces, averages = (
            {name: shard(tensor, split_dim(name), 2, rank, name).clone() for name, tensor in tensors.items()}
            for tensors in (raw, average)
        )
        content = {
            "model": OrderedDict(pieces),
            "ema": {name.replace(".", "-"): piece for name, piece in averages.items()} if has_average else None,
            "trained_data_record": {"image": 0, "video": 5, "iteration": 5},
        }
        files.append(save(folder / f"iter_000000005_model_mp_{rank}.pt", content))
    buffers = ("net.pos_embedder.seq", "logvar.0.freqs", "logvar.0.phases")
    return files, raw, average | {name: raw[name] for name in buffers}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_raw_weights_and_average_of_training_files(tmp_path: Path, suffix: str) -> None:
    files, raw, average = write_training_files(tmp_path / "run", has_average=True)
    output = tmp_path / f"merged{suffix}"
    for weights, wanted in (("raw", raw), ("ema", average)):
        merge_checkpoint(files, output, weights)
        found = read_checkpoint(output)
        assert_equal({name: found[name] for name in wanted}, wanted)
        assert len(found) == len(wanted)
    merge_checkpoint(files, output)
    assert sorted(read_checkpoint(output)) == sorted(name for name in average if name in make_tensors())


def test_an_average_that_is_not_there(tmp_path: Path) -> None:
    files, raw, _ = write_training_files(tmp_path / "run", has_average=False)
    with pytest.raises(
        WorldtuneError, match=r'mp_0\.pt holds no average: its "model" has 10 entries and its "ema" is None'
    ):
        merge_checkpoint(files, tmp_path / "merged.pt", "ema")
    assert not (tmp_path / "merged.pt").exists()
    merge_checkpoint(files, tmp_path / "merged.pt")
    assert_equal(read_checkpoint(tmp_path / "merged.pt"), raw)
    with pytest.raises(WorldtuneError, match="flat dict of 10 entries"):
        split_checkpoint(tmp_path / "merged.pt", tmp_path / "parts", 2, "ema")
    save_file(raw, tmp_path / "raw.safetensors")
    with pytest.raises(WorldtuneError, match=r"raw\.safetensors holds one set of tensors and no average"):
        split_checkpoint(tmp_path / "raw.safetensors", tmp_path / "parts", 2, "ema")
    dashed = {name.replace(".", "-"): tensor for name, tensor in raw.items()}
    with pytest.raises(WorldtuneError, match=r'no raw weights: its "model" is None and its "ema" has 10 entries'):
        split_checkpoint(save(tmp_path / "average.pt", {"ema": dashed}), tmp_path / "parts", 2, "raw")
    assert not (tmp_path / "parts").exists()


def test_splits_of_a_container(tmp_path: Path) -> None:
    raw, average = make_tensors(0), make_tensors(1)
    dashed = {name.replace(".", "-"): tensor for name, tensor in average.items()}
    source = save(tmp_path / "x.pt", {"model": raw, "ema": dashed})
    for weights, wanted in (("raw", raw), ("ema", average), (None, average)):
        folder = tmp_path / str(weights)
        split = split_checkpoint(source, folder, 2, weights)
        assert_equal(join_checkpoint(folder, "x", 2), wanted)
        assert read_json(split).get("weights") == weights
        assert read_json(split_checkpoint(split, tmp_path / f"{weights}_4", 4)).get("weights") == weights
    # Splits that were made before there was a choice stay as they are.
    assert "weights" not in read_json(tmp_path / "None" / "x.split.json")


def test_ranks_are_taken_from_the_names(tmp_path: Path) -> None:
    tensors = make_tensors(heads=16)
    split_checkpoint(save(tmp_path / "x.pt", tensors), tmp_path / "parts", 16)
    files = [tmp_path / "parts" / shard_name("x", rank) for rank in range(16)]
    # A shell lists rank 10 before rank 2.
    assert_equal(join_unlisted(sorted(files)), tensors)
    for chosen in (files[:3] + files[4:], files[:8], [*files, files[0]]):
        with pytest.raises(WorldtuneError, match=r"expected the files of all ranks.*x_model_mp_0\.pt"):
            join_unlisted(chosen)


def test_a_merge_replaces_none_of_its_files(tmp_path: Path) -> None:
    split = split_checkpoint(save(tmp_path / "x.pt", make_tensors()), tmp_path / "parts", 2)
    files = [tmp_path / "parts" / shard_name("x", rank) for rank in range(2)]
    for sources, name in (([split], "x.pt"), (files, "x_model_mp_1.pt")):
        with pytest.raises(WorldtuneError, match="one of the files that are merged"):
            merge_checkpoint(sources, tmp_path / "parts" / name)
    assert_equal(join_checkpoint(tmp_path / "parts", "x", 2), make_tensors())


def test_a_source_that_changes_is_noticed(tmp_path: Path) -> None:
    file = CheckpointFile(save(tmp_path / "x.pt", make_tensors()), None)
    save(tmp_path / "x.pt", make_tensors(1))
    with pytest.raises(WorldtuneError, match=r"x\.pt changed while it was read"):
        file["logvar.1.weight"]


class Unknown:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"net.a": Unknown()}, "more than tensors"),
        ([torch.ones(1)], "holds a list"),
        ({"net.a": 3}, r"no tensors: 'net\.a' \(int\)"),
        ({}, "no tensors"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        read_checkpoint(save(tmp_path / "x.pt", content))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 nothing of use")
    with pytest.raises(WorldtuneError, match=name):
        read_checkpoint(tmp_path / name)
    with pytest.raises(WorldtuneError, match="does not exist"):
        read_checkpoint(tmp_path / f"missing-{name}")


def test_an_index_cannot_leave_its_folder(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(WorldtuneError, match="same folder"):
        read_checkpoint(tmp_path / "x.safetensors.index.json")


def test_scripts(tmp_path: Path) -> None:
    tensors = make_tensors()
    source = save(tmp_path / "x.pt", tensors)
    scripts = ROOT / "src" / "scripts"
    split = [
        sys.executable,
        scripts / "split_checkpoint.py",
        source,
        "--degree",
        "4",
        "--output-dir",
        tmp_path / "parts",
    ]
    subprocess.run(split, check=True, timeout=120)
    output = tmp_path / "merged.safetensors"
    subprocess.run(
        [sys.executable, scripts / "merge_checkpoint.py", tmp_path / "parts" / "x.split.json", "--output", output],
        check=True,
        timeout=120,
    )
    assert_equal(read_checkpoint(output), {name: tensors[name] for name in sorted(tensors)})
