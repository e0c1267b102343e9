import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

# The helpers must be importable by name, since other processes start with them.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_world import make_world

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    make_world(root)
    return root


@pytest.fixture(scope="session")
def trained_run(tiny_world: Path) -> Path:
    """A run of two steps, trained in this process."""
    from tiny_world import tiny_recipe

    from worldtune.training.run import run_training
    from worldtune.transfer1.task import build_task

    run_dir = tiny_world / "results" / "tiny_run"
    code = run_training(
        tiny_recipe(),
        run_dir,
        build_task,
        has_overrides=False,
        manifest=None,
        preflight_only=False,
        datasets=tiny_world / "datasets",
        checkpoints=tiny_world / "checkpoints",
    )
    if dist.is_initialized():
        dist.destroy_process_group()
    assert code == 0
    return run_dir


@pytest.fixture
def own_process_group() -> Iterator[None]:
    """Lets a test start the process group of one process, and ends it."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
