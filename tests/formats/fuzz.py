"""Mutated files against every reader of files that come from outside.

    python tests/formats/fuzz.py                               # 10,000 files a format
    python tests/formats/fuzz.py --files 200 --only mp4 parquet

Each file must be read or be refused with a WorldtuneError that names it, in a short message. Files are read in a child
process with limited memory, whose audit hook ends it where a command would be run; a file that takes the child along is
counted as "died", and the next child goes on behind it. Prints a row a format and every fault with the number that
makes its file again; the status is 1 where there is a fault.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faulty_formats import FAULTY
from fuzz_formats import CANARY, FORMATS, Format

from worldtune.common.errors import WorldtuneError

KNOWN = {**FORMATS, **FAULTY}
MAX_VIRTUAL_BYTES = 3 << 30
"""Address space that the child may take beyond what it has when it begins."""
MAX_RESIDENT_BYTES = 512 << 20
"""Memory that reading one tiny file may take."""
MAX_SECONDS = 20
"""A file that takes longer counts as one that hangs."""
MAX_MESSAGE = 2000
"""Characters of a message."""
FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")
"""Audit events that no reader causes."""
RAN_CODE = 87
"""Exit status of a child that would have run a command."""
LENGTHS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
SHOWN = 300


@dataclass(kw_only=True)
class Result:
    """What became of the files of one format."""

    counts: Counter[str] = field(default_factory=Counter)
    """"read", "refused", and one for each kind of fault."""
    faults: dict[int, str] = field(default_factory=dict)
    """Number of the file -> what was wrong."""
    seconds: float = 0.0
    """Of the processor."""
    peak_bytes: int = 0
    """Largest growth of the child's resident memory over one file."""


def file_content(form: Format, number: int) -> bytes:
    """Return file `number` of a format: the hand-made ones first, then mutants; the same in each process."""
    made = form.hostile()
    if number < len(made):
        return made[number]
    rng = random.Random(f"{form.name}/{number}")
    return mutate(rng.choice([*form.valid(), *made]), rng, form.valid(), form.tokens)


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """Return `data` with one to four random changes."""
    changed = bytearray(data)
    changes: list[Callable[[bytearray], None]] = [
        lambda raw: _flip(raw, rng),
        lambda raw: _overwrite(raw, rng, rng.randbytes(rng.randint(1, 8))),
        lambda raw: _overwrite(raw, rng, _length(rng)),
        lambda raw: _behind_token(raw, rng, tokens),
        lambda raw: _insert(raw, rng, rng.choice(tokens) if tokens else rng.randbytes(4)),
        lambda raw: _splice(raw, rng, rng.choice(others)),
        lambda raw: _delete(raw, rng),
        lambda raw: _repeat(raw, rng),
        lambda raw: raw.__delitem__(slice(rng.randint(0, len(raw)), None)),
    ]
    # Cutting off and splicing leave little for the next change to meet.
    weights = [6, 4, 4, 6 if tokens else 0, 3, 1, 2, 1, 1]
    for change in rng.choices(changes, weights, k=rng.randint(1, 4)):
        change(changed)
    return bytes(changed)


def _length(rng: random.Random) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    return (rng.choice(LENGTHS) & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("big", "little")))


def _flip(raw: bytearray, rng: random.Random) -> None:
    if raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def _overwrite(raw: bytearray, rng: random.Random, new: bytes) -> None:
    start = rng.randint(0, len(raw))
    raw[start : start + len(new)] = new


def _behind_token(raw: bytearray, rng: random.Random, tokens: Sequence[bytes]) -> None:
    start = raw.find(rng.choice(tokens), rng.randint(0, len(raw)))
    if start >= 0:
        start += rng.randint(0, 40)
        new = _length(rng)
        raw[start : start + len(new)] = new


def _insert(raw: bytearray, rng: random.Random, new: bytes) -> None:
    start = rng.randint(0, len(raw))
    raw[start:start] = new


def _splice(raw: bytearray, rng: random.Random, other: bytes) -> None:
    raw[rng.randint(0, len(raw)) :] = other[rng.randint(0, len(other)) :]


def _delete(raw: bytearray, rng: random.Random) -> None:
    start = rng.randint(0, len(raw))
    del raw[start : start + rng.randint(1, 16)]


def _repeat(raw: bytearray, rng: random.Random) -> None:
    start = rng.randint(0, len(raw))
    raw[start:start] = raw[start : start + rng.randint(1, 64)] * rng.randint(1, 20)


def _memory(key: str) -> int:
    """Return a value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _forbid(event: str, arguments: tuple[object, ...]) -> None:
    if event in FORBIDDEN:
        os.write(2, f"{event} {arguments!r:.{SHOWN}}\n".encode())
        os._exit(RAN_CODE)


def _try(form: Format, path: Path) -> str:
    """Read one file and return "read", "refused" or what was wrong."""
    try:
        form.read(path)
    except WorldtuneError as error:
        if len(str(error)) > MAX_MESSAGE:
            return f"message of {len(str(error))} characters"
        # A part of the file may be the one to blame.
        named = path.name in str(error) or str(path.parent) in str(error)
        return "refused" if named else f"message without the file's name: {str(error)[:SHOWN]}"
    except Exception as error:  # noqa: BLE001 - whatever else it is, it is a fault
        return f"{type(error).__name__}: {str(error)[:SHOWN]}"
    return "read"


def _child(folder: Path, log: Path, work: list[tuple[str, int, int]]) -> None:
    """Read the files of `work` (format, first number, end) and write a line before and after each."""
    os.chdir(folder)
    # torch has a warning for each number of a protocol.
    warnings.simplefilter("ignore")
    # Libraries that are imported on first use load shared objects.
    for name, _, _ in work:
        for number, data in enumerate(KNOWN[name].valid()):
            path = folder / f"valid_{number}{KNOWN[name].suffix}"
            path.write_bytes(data)
            KNOWN[name].read(path)
            path.unlink()
    sys.addaudithook(_forbid)
    limit = _memory("VmSize") + MAX_VIRTUAL_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(log, "w", buffering=1) as record:
        for name, first, end in work:
            form = KNOWN[name]
            for number in range(first, end):
                record.write(json.dumps([name, number]) + "\n")
                path = folder / f"{name}_{number}{form.suffix}"
                path.write_bytes(file_content(form, number))
                Path("/proc/self/clear_refs").write_text("5")
                before, began = _memory("VmRSS"), time.process_time()
                signal.alarm(MAX_SECONDS)
                outcome = _try(form, path)
                signal.alarm(0)
                seconds, grown = time.process_time() - began, _memory("VmHWM") - before
                if grown > MAX_RESIDENT_BYTES:
                    outcome = f"memory: {grown >> 20} MiB ({outcome})"
                canary = folder / CANARY
                if canary.exists():
                    canary.unlink()
                    outcome = "ran code"
                path.unlink()
                record.write(json.dumps([name, number, outcome, seconds, grown]) + "\n")


def fuzz(names: Sequence[str], num_files: int, folder: Path) -> dict[str, Result]:
    """Read `num_files` files of each named format.

    It forks, so that a reader that takes its process along costs little; call it where no other thread runs.

    Args:
        names: keys of KNOWN.
        num_files: of each format.
        folder: an empty one for the files.

    Returns:
        What became of them, by format.
    """
    results = {name: Result() for name in names}
    work = [(name, 0, num_files) for name in names]
    log = folder / "log.jsonl"
    while work:
        process = multiprocessing.get_context("fork").Process(target=_child, args=(folder, log, work))
        process.start()
        process.join()
        begun = None
        for line in log.read_text().splitlines():
            begun = _count(results, json.loads(line))
        if begun is None:
            if process.exitcode:
                raise RuntimeError(f"the child ended with {process.exitcode} before the first file or after the last")
            break
        name, number = begun
        kind = {-signal.SIGALRM: "hung", RAN_CODE: "ran code"}.get(process.exitcode or 0, "died")
        results[name].counts[kind] += 1
        results[name].faults[number] = f"{kind} ({process.exitcode})"
        left = [(name, number + 1, num_files)] if number + 1 < num_files else []
        work = left + work[[item[0] for item in work].index(name) + 1 :]
    return results


def _count(results: dict[str, Result], entry: list[Any]) -> tuple[str, int] | None:
    """Take a line of the log into account; return the file that was begun with it, None where it was the end of one."""
    name, number, *rest = entry
    if not rest:
        return name, number
    outcome, seconds, grown = rest
    result = results[name]
    result.seconds += seconds
    result.peak_bytes = max(result.peak_bytes, grown)
    kind = outcome if outcome in ("read", "refused") else outcome.partition(":")[0]
    result.counts[kind] += 1
    if kind not in ("read", "refused"):
        result.faults[number] = outcome
    return None


def _rows(results: dict[str, Result]) -> Iterator[str]:
    yield "| format | files | read | refused | faults | seconds | peak MiB |"
    yield "|---|---|---|---|---|---|---|"
    for name, result in results.items():
        counts = result.counts
        yield (
            f"| {name} | {counts.total()} | {counts['read']} | {counts['refused']} | {len(result.faults)} | "
            f"{result.seconds:.1f} | {result.peak_bytes / 2**20:.0f} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="files of each format")
    parser.add_argument("--only", nargs="+", choices=KNOWN, default=list(FORMATS), help="formats")
    parser.add_argument("--json", action="store_true", help="print what a program reads")
    parser.add_argument("--keep", type=Path, help="write the files with faults into this folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
        results = fuzz(arguments.only, arguments.files, Path(folder))
    if arguments.json:
        print(json.dumps({name: vars(result) for name, result in results.items()}))
        return 0
    print(*_rows(results), sep="\n")
    for name, result in results.items():
        for number, fault in sorted(result.faults.items())[:10]:
            print(f"{name} {number}: {fault}")
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                path = arguments.keep / f"{name}_{number}{FORMATS[name].suffix}"
                path.write_bytes(file_content(FORMATS[name], number))
    return int(any(result.faults for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
