import hashlib
import os

import pytest

from worldtune.dataset import verification
from worldtune.dataset.verification import RECORD, read_captions, verify_files


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files, what is expected of them, and the list of those that are hashed."""
    contents = {f"videos/{name}.mp4": name.encode() * 9 for name in "abc"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    hashed: list[str] = []
    real = verification.sha256_file

    def spy(path):
        hashed.append(path.stem)
        return real(path)

    monkeypatch.setattr(verification, "sha256_file", spy)
    return tmp_path, {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}, hashed


def test_files_are_hashed_once(files):
    root, expected, hashed = files
    assert verify_files(root, expected, threads=2) == {}
    assert sorted(hashed) == ["a", "b", "c"]
    assert verify_files(root, expected) == {}
    assert len(hashed) == 3


def test_gone_and_changed_files_are_found(files):
    root, expected, hashed = files
    verify_files(root, expected)
    hashed.clear()
    (root / "videos/a.mp4").unlink()
    # The same size.
    (root / "videos/b.mp4").write_bytes(b"B" * 9)
    problems = {"videos/a.mp4": "gone", "videos/b.mp4": "changed"}
    assert verify_files(root, expected) == problems
    assert hashed == ["b"]
    assert verify_files(root, expected) == problems
    (root / "videos/b.mp4").write_bytes(b"b" * 9)
    assert verify_files(root, expected) == {"videos/a.mp4": "gone"}


def test_a_change_that_sets_the_time_back_is_found(files):
    root, expected, _ = files
    verify_files(root, expected)
    path = root / "videos/c.mp4"
    before = path.stat()
    path.write_bytes(b"C" * 9)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert verify_files(root, expected) == {"videos/c.mp4": "changed"}


def test_a_damaged_record_is_made_again(files, caplog):
    root, expected, hashed = files
    verify_files(root, expected)
    (root / RECORD).write_bytes(b"no table")
    assert verify_files(root, expected) == {}
    assert len(hashed) == 6
    assert "Every file is hashed again" in caplog.text


def test_captions_that_cannot_be_read_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text(" A thing.\n")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    found = read_captions([tmp_path / f"{name}.txt" for name in "abc"])
    assert found == {tmp_path / "a.txt": ("A thing.", hashlib.sha256(b"A thing.").hexdigest())}
