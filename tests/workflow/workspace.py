"""A copy of the repository in which tests run the real graph."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What one call of snakemake did."""

    returncode: int
    text: str
    finished: tuple[str, ...]
    """The jobs that ended well: rule name, and in brackets its shard or whatever tells it from others of the rule."""


class Workspace:
    """A folder with the repository's files, without its data."""

    def __init__(self, folder: Path) -> None:
        """Copy every file that git tracks or would track."""
        self.root = folder
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, check=True
        )
        for name in listed.stdout.decode().split("\0"):
            source = REPOSITORY / name
            if name and source.is_file():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)

    def environment(self) -> dict[str, str]:
        """The environment of every process of this workspace: its own copy of the library, few threads."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WORLDTUNE_", "OUTPUT_ROOT"))}
        return {**kept, "PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}

    def shorten_base_training(self) -> None:
        """Leave of the demo base's training what shows that it runs: most tests need no good base."""
        for name, pattern in (
            ("base_training.py", r"(num_steps=)\d+(, batch)"),
            ("checkpoints.py", r"(\nNUM_SCENES = )\d+(\n)"),
            ("driving_checkpoints.py", r"(num_steps=)\d+(, batch)"),
            ("driving_checkpoints.py", r"(\nNUM_SCENES = )\d+(\n)"),
        ):
            path = self.root / "src/worldtune/demo" / name
            text, count = re.subn(pattern, r"\g<1>2\g<2>", path.read_text())
            assert count, f"{pattern} is not in {name}"
            path.write_text(text)

    def command(self, *arguments: str) -> list[str]:
        """The command line of a snakemake call."""
        return [sys.executable, "-m", "snakemake", "--cores", "2", "--nocolor", *arguments]

    def snakemake(self, *arguments: str, check: bool = True) -> Result:
        """Run snakemake to its end."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"snakemake {' '.join(arguments)} failed:\n{done.stdout[-6000:]}")
        return Result(done.returncode, done.stdout, finished_jobs(done.stdout))

    def planned(self, *arguments: str) -> tuple[str, ...]:
        """The jobs that a dry run plans."""
        text = self.snakemake("--dryrun", *arguments).text
        return tuple(sorted(label for label, _ in _jobs(text)))

    def edit(self, name: str, changes: Mapping[str, str]) -> None:
        """Replace texts in a file of the workspace; each must be there."""
        path = self.root / name
        text = path.read_text()
        for old, new in changes.items():
            assert old in text, f"{old!r} is not in {name}"
            text = text.replace(old, new)
        path.write_text(text)

    def raise_version(self, module: str) -> None:
        """Add one to the VERSION of a stage's module."""
        path = self.root / "src/worldtune" / module
        text, count = re.subn(
            r"\nVERSION = (\d+)\n", lambda match: f"\nVERSION = {int(match[1]) + 1}\n", path.read_text()
        )
        assert count == 1, f"{module} has no VERSION"
        path.write_text(text)


def _jobs(text: str) -> Sequence[tuple[str, str]]:
    """The label and the job id of every job block in snakemake's output."""
    jobs = []
    for block in re.split(r"\n(?=(?:local)?(?:rule|checkpoint) \w+:\n)", text):
        head = re.match(r"(?:local)?(?:rule|checkpoint) (\w+):\n", block)
        number = re.search(r"^    jobid: (\d+)$", block, re.MULTILINE)
        if not head or not number:
            continue
        wildcards = re.search(r"^    wildcards: (.*)$", block, re.MULTILINE)
        values = dict(part.split("=", 1) for part in wildcards.group(1).split(", ")) if wildcards else {}
        detail = values.get("stem") or values.get("shard") or ""
        jobs.append((f"{head.group(1)}[{detail}]" if detail else head.group(1), number.group(1)))
    return jobs


def finished_jobs(text: str) -> tuple[str, ...]:
    """The labels of the jobs that snakemake's output says have finished, sorted."""
    labels = {number: label for label, number in _jobs(text)}
    numbers = re.findall(r"^Finished jobid: (\d+)", text, re.MULTILINE)
    return tuple(sorted(labels[number] for number in numbers if number in labels and labels[number] != "all"))
