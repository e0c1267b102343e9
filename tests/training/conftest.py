import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

# The helpers must be importable by name, since other processes start with them.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def single_mesh() -> Iterator[DeviceMesh]:
    from worldtune.parallel.mesh import build_mesh

    torch.set_num_threads(1)
    yield build_mesh("cpu")
    dist.destroy_process_group()
