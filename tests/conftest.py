from collections.abc import Iterator
from pathlib import Path

import pytest
from full_disk import mount, remount, unmount


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 200 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=200k")
    yield folder
    unmount(folder)


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that cannot be written, with results/manifest.json on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=200k")
    (folder / "results").mkdir()
    (folder / "results" / "manifest.json").write_text("old")
    remount(folder, "ro")
    yield folder
    unmount(folder)
