"""A small disk of its own for tests of full and read-only disks."""

import errno
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from worldtune.common import script


def mount(folder: Path, options: str) -> None:
    """Mount a disk in memory, or skip the test where this account may not."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount a disk in memory (root in a container): {done.stderr.strip()}")


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave_free(folder: Path, num_bytes: int) -> None:
    """Make a mounted disk so large that about `num_bytes` bytes are free."""
    status = os.statvfs(folder)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    remount(folder, f"size={used + num_bytes}")


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def error_of(main: Callable[[], object]) -> str:
    """Run a script's main as scripts do; returns what it ends with."""
    with pytest.raises(SystemExit) as ended:
        script.run(lambda: main() and None)
    assert isinstance(ended.value.code, str), "the script ended with a status and no message"
    return ended.value.code


def refuse_writes(monkeypatch: pytest.MonkeyPatch, pattern: str, number: int = errno.ENOSPC) -> list[str]:
    """Make the disk full for files whose path matches, when they are to be brought to the disk.

    A full disk of its own fails at the first write; this one fails at a chosen one. Returns the files that were met.
    """
    fsync = os.fsync
    met: list[str] = []

    def full(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if re.search(pattern, path):
            met.append(path)
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    return met
