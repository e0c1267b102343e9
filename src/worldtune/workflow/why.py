"""What a dry run would do again, and which value, file or code causes it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldtune.common.errors import WorldtuneError

JOB = re.compile(r"^\[|^(?:local)?(?:rule|checkpoint) (?P<rule>\w+):")
LONGEST_VALUE = 200


@dataclass(frozen=True)
class PlannedJob:
    """One job that would run."""

    rule: str
    output: str
    reason: str
    before: tuple[str, ...]
    """Recorded values that are no longer there."""
    now: tuple[str, ...]
    """Values that were not recorded."""


def planned_jobs(targets: Sequence[str], root: Path) -> list[PlannedJob]:
    """Return the jobs that snakemake plans for `targets`, with its reasons.

    Raises:
        WorldtuneError: snakemake fails; the message has its output.
    """
    command = [sys.executable, "-m", "snakemake", "--dryrun", "--cores", "1", "--nocolor", "--", *targets]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if result.returncode:
        raise WorldtuneError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return list(_parse(result.stdout + result.stderr))


def _parse(text: str) -> Iterator[PlannedJob]:
    for block in re.split(r"\n(?=(?:local)?(?:rule|checkpoint) \w+:\n)", "\n" + text):
        head = re.match(r"\s*(?:local)?(?:rule|checkpoint) (\w+):\n", block)
        if not head:
            continue
        output = re.search(r"^    output: (.*)$", block, re.MULTILINE)
        reason = re.search(r"^    reason: (.*)$", block, re.MULTILINE)
        before = _values(block, "before")
        now = _values(block, "now")
        yield PlannedJob(
            rule=head.group(1),
            output=output.group(1) if output else "",
            reason=reason.group(1) if reason else "",
            before=tuple(sorted(before - now)),
            now=tuple(sorted(now - before)),
        )


def _values(block: str, name: str) -> set[str]:
    """Return the values of a "before: ..." or "now: ..." line; a list counts as its items, so that one entry shows."""
    values: set[str] = set()
    for line in re.findall(rf"^\s*{name}: (.*)$", block, re.MULTILINE):
        for value in _split(line):
            values.update(value)
    return {value for value in values if not re.fullmatch(r"'?[0-9a-f]{12}-[0-9a-f]+'?", value)}


def _split(line: str) -> Iterator[list[str]]:
    try:
        parsed = ast.literal_eval(line if line.startswith(("(", "[")) else f"[{line}]")
    except (ValueError, SyntaxError):
        yield [part.strip() for part in line.split(", ")]
        return
    for item in parsed:
        yield [repr(part) for part in item] if isinstance(item, list) else [str(item)]


def describe(jobs: Sequence[PlannedJob]) -> str:
    """Return the jobs as text for people."""
    if not jobs:
        return "nothing would run again"
    lines = []
    for job in jobs:
        lines.append(f"{job.rule}: {job.output}")
        lines.append(f"    {job.reason}")
        lines += [f"    was {_short(value)}" for value in job.before]
        lines += [f"    now {_short(value)}" for value in job.now]
    return "\n".join(lines)


def _short(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else value[:LONGEST_VALUE] + " ..."
