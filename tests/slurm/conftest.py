from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from sandbox import Sandbox
from workspace import Workspace


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    # Sockets have short path limits, so this is no folder of pytest's.
    with TemporaryDirectory(prefix="worldtune-slurm-") as folder:
        started = Sandbox(Path(folder))
        started.start()
        try:
            yield started
        finally:
            started.stop()


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The repository with a small dataset, and with the names of the sandbox's account and partitions."""
    workspace = Workspace(tmp_path_factory.mktemp("slurm"))
    path = workspace.root / "config/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["datasets"]["synthetic"] |= {"num_clips": 8, "num_shards": 1, "min_clips": 4, "controls": ["edge"]}
    config["cluster"] |= {"account": "sandbox", "partitions": {"cpu": "cpu", "gpu": "gpu", "network": None}}
    path.write_text(yaml.safe_dump(config))
    workspace.shorten_base_training()
    return workspace
