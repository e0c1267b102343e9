import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.axes import shard, split_dim


@pytest.mark.parametrize(
    ("data", "context", "tensor"),
    [
        (1, 1, 2),
        pytest.param(1, 1, 4, marks=pytest.mark.slow),
        pytest.param(1, 1, 8, marks=pytest.mark.slow),
        (1, 2, 1),
        (1, 4, 1),
        pytest.param(1, 2, 2, marks=pytest.mark.slow),
        pytest.param(1, 2, 4, marks=pytest.mark.slow),
        pytest.param(2, 2, 1, marks=pytest.mark.slow),
        pytest.param(2, 2, 2, marks=pytest.mark.slow),
    ],
)
def test_networks_over_processes_equal_those_in_one(data: int, context: int, tensor: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("layout_check.py")
    degrees = [str(data), str(context), str(tensor)]
    done = subprocess.run(
        [sys.executable, script, *degrees, tmp_path], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize(("context", "tensor"), [(1, 1), (2, 1), (1, 2)])
def test_compiled_networks_equal_others(context: int, tensor: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("layout_check.py")
    degrees = ["1", str(context), str(tensor)]
    done = subprocess.run(
        [sys.executable, script, *degrees, tmp_path, "aot_eager"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_split_axes() -> None:
    attention = "blocks.block0.blocks.1.block.attn."
    for prefix in ("", "net.", "base_model.net."):
        for name, dim in (
            ("to_q.0", 0),
            ("to_k.0", 0),
            ("to_v.0", 0),
            ("to_out.0", 1),
            ("to_q.1", None),
            ("to_k.1", None),
        ):
            assert split_dim(f"{prefix}{attention}{name}.weight") == dim
        assert split_dim(f"{prefix}blocks.block0.blocks.2.block.layer1.weight") == 0
        assert split_dim(f"{prefix}blocks.block0.blocks.2.block.layer2.weight") == 1
        assert split_dim(f"{prefix}blocks.block0.blocks.2.adaLN_modulation.2.weight") is None
        assert split_dim(f"{prefix}t_embedder.1.linear_1.weight") is None
    assert split_dim("net.my_layer1.weight") is None


def test_shards() -> None:
    full = torch.arange(24).reshape(4, 6)
    assert torch.equal(shard(full, 1, 3, 2, "a"), full[:, 4:])
    assert torch.equal(torch.cat([shard(full, 0, 2, rank, "a") for rank in range(2)]), full)
    assert shard(full, None, 5, 3, "a") is full
    with pytest.raises(WorldtuneError, match=r"a has shape \(4, 6\): axis 0 cannot be cut into 3"):
        shard(full, 0, 3, 0, "a")
