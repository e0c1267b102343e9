import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING:
    from toy_job import Job

# The helpers must be importable by name, since other processes start with them.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def single_mesh() -> Iterator[DeviceMesh]:
    from worldtune.parallel.mesh import build_mesh

    torch.set_num_threads(1)
    yield build_mesh("cpu")
    dist.destroy_process_group()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Job"]:
    from toy_job import Job
    from trainer_toy import toy_inputs

    import worldtune.training.run as run_module
    from worldtune.training.signals import STOP_SIGNALS

    torch.set_num_threads(1)
    monkeypatch.setattr(run_module, "find_inputs", lambda *_args, **_kwargs: toy_inputs())
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield Job(tmp_path / "toy_run")
    # A training process keeps these signals for good; pytest wants them back.
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
