import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

# The helpers must be importable by name, since other processes start with them.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from tiny_world import make_world

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    make_world(root)
    yield root


@pytest.fixture
def own_process_group() -> Iterator[None]:
    """Lets a test start the process group of one process, and ends it."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
