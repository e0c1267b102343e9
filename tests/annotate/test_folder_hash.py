import os
import threading

import pytest

from worldtune.annotate import folder_hash
from worldtune.annotate.folder_hash import folder_sha256
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest, sha256_file, write_json


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "network"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are read, in their order; a file's times count from the moment that it is there."""
    names = []

    def read(path):
        names.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(folder_hash, "sha256_file", read)
    monkeypatch.setattr(folder_hash, "SETTLED_S", -60.0)
    return names


def test_hash_is_of_names_and_content(folder, tmp_path):
    files = {name: sha256_file(folder / name) for name in ("config.json", "model.safetensors")}
    assert folder_sha256(folder) == digest(files)
    (folder / "config.json").write_text("[]")
    assert folder_sha256(folder) != digest(files)
    write_json(folder / "files.json", files)
    assert folder_sha256(folder) == digest(files)


def test_only_files_that_changed_are_read_again(folder, hashed):
    first = folder_sha256(folder)
    assert hashed == ["config.json", "model.safetensors"]
    assert folder_sha256(folder) == first
    assert hashed == ["config.json", "model.safetensors"]
    # Of the same size, and with the time of before, as a copy that keeps times has it.
    times = os.stat(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = folder_sha256(folder)
    assert hashed[2:] == ["model.safetensors"]
    assert second not in (first, folder_hash.digest({}))
    (folder / "config.json").unlink()
    assert folder_sha256(folder) not in (first, second)
    assert hashed[3:] == []


def test_a_file_that_just_changed_is_not_remembered(folder, hashed, monkeypatch):
    monkeypatch.setattr(folder_hash, "SETTLED_S", 60.0)
    folder_sha256(folder)
    folder_sha256(folder)
    assert len(hashed) == 4


def test_damaged_memory_is_made_again(folder, hashed):
    first = folder_sha256(folder)
    for content in ("no JSON", "[]", '{"config.json": {"state": 1}, "model.safetensors": 2}'):
        (folder / folder_hash.HASHES_FILE).write_text(content)
        assert folder_sha256(folder) == first
    assert len(hashed) == 8


def test_a_folder_that_cannot_be_written_is_hashed_each_time(folder, hashed, monkeypatch, caplog):
    def refused(_path):
        raise PermissionError("read-only file system")

    first = folder_sha256(folder)
    monkeypatch.setattr(folder_hash, "exclusive", refused)
    assert folder_sha256(folder) == first
    assert len(hashed) == 4
    assert "cannot be remembered there (read-only file system)" in caplog.text


def test_jobs_at_the_same_time_hash_once(folder, hashed):
    found = []
    threads = [threading.Thread(target=lambda: found.append(folder_sha256(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(hashed) == 2


def test_folders_without_a_network(tmp_path):
    with pytest.raises(WorldtuneError, match="none does not exist; a network is expected there"):
        folder_sha256(tmp_path / "none")
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(WorldtuneError, match="is empty; a network is expected there"):
        folder_sha256(tmp_path)
