"""Readers with faults, on which the fuzzer itself is tried."""

import os
from collections.abc import Callable
from pathlib import Path

from fuzz_formats import CANARY, Format

from worldtune.common.errors import WorldtuneError


def _fails(path: Path) -> None:
    raise ZeroDivisionError("no clean error")


def _dies(path: Path) -> None:
    os.abort()


def _runs_a_command(path: Path) -> None:
    os.system("true")


def _writes_the_canary(path: Path) -> None:
    path.with_name(CANARY).touch()


def _takes_memory(path: Path) -> None:
    b"x" * (1 << 30)


def _names_nothing(path: Path) -> None:
    raise WorldtuneError("something is wrong")


def _says_too_much(path: Path) -> None:
    raise WorldtuneError(f"{path} holds {'x' * 5000}")


def _first_only(reader: Callable[[Path], None]) -> Callable[[Path], None]:
    """Read valid files, and let one mutant meet the fault."""
    return lambda path: reader(path) if path.stem.endswith("_1") and not path.stem.startswith("valid") else None


FAULTY = {
    kind: Format(name=kind, suffix=".bin", make=lambda: [b"content"], read=_first_only(reader))
    for kind, reader in {
        "ZeroDivisionError": _fails,
        "died": _dies,
        "ran code": _runs_a_command,
        "ran code later": _writes_the_canary,
        "memory": _takes_memory,
        "message without the file's name": _names_nothing,
        "message of": _says_too_much,
    }.items()
}
"""The fault that must be found -> a format."""
