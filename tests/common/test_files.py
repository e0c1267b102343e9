import errno
import fcntl
import os
from pathlib import Path

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import FICLONE, copy_file, link_or_copy, read_json


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.mp4"
    path.write_bytes(b"content")
    path.chmod(0o444)
    return path


def usual_mode(folder: Path) -> int:
    path = folder / "usual"
    path.touch()
    return mode(path)


def test_copy_is_another_file_with_a_mode_of_its_own(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "sub" / "target.mp4"
    copy_file(source, target)
    assert target.read_bytes() == b"content"
    assert not target.samefile(source)
    assert (mode(source), mode(target)) == (0o444, usual_mode(tmp_path))


def test_copy_shares_blocks_where_the_file_system_can(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    def clone(target: object, request: int, original: int) -> int:
        requests.append((request, os.fstat(original).st_ino))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    copy_file(source, tmp_path / "target")
    assert requests == [(FICLONE, source.stat().st_ino)]
    # The system call was asked and said that it was done: nothing is copied once more.
    assert (tmp_path / "target").read_bytes() == b""


def test_link_keeps_the_mode_and_replaces_the_target(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    for _ in range(2):
        link_or_copy(source, target)
        assert target.samefile(source)
        assert mode(source) == 0o444
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.mp4", "target"]


def test_file_that_cannot_be_linked_is_copied(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    link_or_copy(source, tmp_path / "target")
    assert not (tmp_path / "target").samefile(source)
    assert (tmp_path / "target").read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.mp4", "target"]


@pytest.mark.parametrize("content", [b"{", b'"\xff"', b"[" * 100_000], ids=["torn", "not UTF-8", "deeply nested"])
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(WorldtuneError, match=r"manifest\.json is no valid JSON .*Delete it"):
        read_json(path)
