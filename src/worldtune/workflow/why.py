"""What a dry run would do again, and which value, file or code causes it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldtune.common.errors import WorldtuneError

CHANGED_PARAMS = re.compile(
    r"Params have changed since last execution: Union of exclusive params before and now across all output: "
    r"before: (?P<before>.*?) now: (?P<now>.*?)(?= *(?:;|$))"
)
NOTHING = "<nothing exclusive>"
FINGERPRINT = re.compile(r"[0-9a-f]{12}-[0-9a-f]+")
LONGEST_VALUE = 200

OUR_ERROR = re.compile(
    r'(?:^error: |WorldtuneError(?:: | in file "[^"]*", line \d+:\n))(.*?)(?=\n  File |\nTraceback|\nWildcards:|\Z)',
    re.DOTALL | re.MULTILINE,
)
"""A WorldtuneError as the rules, an input function or the reading of the Snakefile lets it be printed."""


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
        output = result.stdout + result.stderr
        known = OUR_ERROR.search(output)
        raise WorldtuneError(known[1].strip() if known else f"{' '.join(command)} failed:\n{output}")
    return list(_parse(result.stdout + result.stderr))


def _parse(text: str) -> Iterator[PlannedJob]:
    for block in re.split(r"\n(?=(?:local)?(?:rule|checkpoint) \w+:\n)", "\n" + text):
        head = re.match(r"\s*(?:local)?(?:rule|checkpoint) (\w+):\n", block)
        if not head:
            continue
        output = re.search(r"^    output: (.*)$", block, re.MULTILINE)
        reason = re.search(r"^    reason: (.*)$", block, re.MULTILINE)
        told = reason.group(1).strip() if reason else ""
        changed = CHANGED_PARAMS.search(told)
        before, now = (_values(changed["before"]), _values(changed["now"])) if changed else (set[str](), set[str]())
        yield PlannedJob(
            rule=head.group(1),
            output=output.group(1) if output else "",
            reason=CHANGED_PARAMS.sub("values changed", told),
            before=tuple(sorted(before - now)),
            now=tuple(sorted(now - before)),
        )


def _values(text: str) -> set[str]:
    """Return the values of a list that snakemake prints; of lists in it the items, so that one changed entry shows."""
    if text == NOTHING:
        return set()
    try:
        parsed = ast.literal_eval(f"[{text}]")
    except (ValueError, SyntaxError):
        parsed = text.split(",")
    values: set[str] = set()
    for item in parsed:
        if isinstance(item, list | tuple):
            values.update(repr(part) for part in item)
        elif isinstance(item, int):
            values.add(f"version {item}")
        elif not FINGERPRINT.fullmatch(str(item)):
            values.add(str(item))
    return values


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
