"""Errors of the disk end in one line that names the file and says what to do, whichever library met them."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from full_disk import error_of
from PIL import Image
from safetensors.torch import save_file

from worldtune.common import script
from worldtune.common.disk import ADVICE, disk_advice, disk_errors_named
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, copy_file, link_or_copy, write_json
from worldtune.media.video import write_video

FRAMES = np.random.default_rng(0).integers(0, 256, (36, 160, 160, 3), dtype=np.uint8)
TENSOR = torch.arange(100_000, dtype=torch.float32)


def by_library(path: Path) -> None:
    """Write about 400 KB to a path by the library that its suffix belongs to."""
    if path.suffix in (".mp4", ".mkv"):
        write_video(path, FRAMES, 24, lossless=path.suffix == ".mkv")
        return
    if path.suffix == ".copy":
        source = path.parent.with_suffix(".source")
        source.write_bytes(b"x" * 400_000)
        copy_file(source, path)
        return
    if path.suffix == ".json":
        write_json(path, list(range(100_000)))
        return
    with atomic_path(path) as temporary:
        if path.suffix == ".pt":
            with open(temporary, "wb") as file:
                torch.save({"a": TENSOR}, file)
        elif path.suffix == ".safetensors":
            save_file({"a": TENSOR}, temporary)
        elif path.suffix == ".parquet":
            pq.write_table(pa.table({"a": FRAMES.reshape(-1)}), temporary)
        elif path.suffix == ".png":
            Image.fromarray(np.concatenate(FRAMES)).save(temporary)


SUFFIXES = ["mp4", "mkv", "copy", "json", "pt", "safetensors", "parquet", "png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(full_disk: Path, suffix: str) -> None:
    target = full_disk / f"out.{suffix}"
    target.write_bytes(b"old")
    message = error_of(lambda: by_library(target))
    assert message == f"error: {target}: No space left on device. {ADVICE[errno.ENOSPC]}"
    assert target.read_bytes() == b"old"
    assert [path.name for path in full_disk.iterdir()] == [target.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_writes_pass_where_there_is_space(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / "sub" / f"out.{suffix}"
    by_library(target)
    assert target.stat().st_size > 100_000


def test_a_read_only_disk_is_named(read_only_disk: Path) -> None:
    target = read_only_disk / "results" / "manifest.json"
    message = error_of(lambda: write_json(target, {"new": 1}))
    assert message == f"error: {target}: Read-only file system. {ADVICE[errno.EROFS]}"
    assert target.read_text() == "old"


def test_a_full_disk_where_a_file_is_linked(full_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "store.bin"
    source.write_bytes(b"x" * 400_000)
    message = error_of(lambda: link_or_copy(source, full_disk / "linked.bin"))
    assert f"{full_disk / 'linked.bin'}: No space left on device" in message
    assert source.stat().st_size == 400_000
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_an_error_at_the_end_of_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    target = tmp_path / "a.json"
    write_json(target, "old")

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, where, fails)
    message = error_of(lambda: write_json(target, "new"))
    assert message == f"error: {target}: {os.strerror(number)}. {ADVICE[number]}"
    assert target.read_text() == '"old"\n'
    assert list(tmp_path.iterdir()) == [target]


def raise_from(error: BaseException, cause: BaseException) -> None:
    raise error from cause


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied. Give your account"),
        (IsADirectoryError(errno.EISDIR, "", "a/b"), "a/b: Is a directory. Expected a file"),
        (NotADirectoryError(errno.ENOTDIR, "", "a/b"), "a/b: Not a directory. Expected a folder"),
        (FileExistsError(errno.EEXIST, "", "a/b"), "a/b: File exists. Expected a folder"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device. Free space"),
    ],
)
def test_other_errors_of_files(error: Exception, part: str) -> None:
    advice = disk_advice(error)
    assert advice is not None
    assert advice.startswith(part)


@pytest.mark.parametrize("error", [RuntimeError("(os error 5)"), OSError(errno.EIO, "I/O"), ValueError("x")])
def test_what_is_no_error_of_the_disk_keeps_its_traceback(error: Exception) -> None:
    assert disk_advice(error) is None

    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        script.run(main)


def test_an_error_of_the_input_stays_one_and_an_unreadable_source_keeps_its_name(tmp_path: Path) -> None:
    def refuse(error: Exception) -> Callable[[], Any]:
        def write() -> None:
            with disk_errors_named(tmp_path / "target"):
                raise error

        return write

    assert error_of(refuse(WorldtuneError("the input is wrong"))) == "error: the input is wrong"
    source = PermissionError(errno.EACCES, "Permission denied", "source.mp4")
    assert error_of(refuse(source)).startswith("error: source.mp4: Permission denied")


def test_the_first_cause_is_found_behind_others() -> None:
    with pytest.raises(RuntimeError) as caught:
        raise_from(RuntimeError("unexpected pos 704 vs 598"), OSError(errno.ENOSPC, "No space left on device", "w.pt"))
    assert disk_advice(caught.value) == f"w.pt: No space left on device. {ADVICE[errno.ENOSPC]}"
