"""The SLURM jobs of this workflow, by rule."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from worldtune.common.errors import WorldtuneError

FIELDS = {"job": "%i", "state": "%T", "time": "%M", "limit": "%l", "nodes": "%D", "cpus": "%C", "memory": "%m"}
FIELDS |= {"gpus": "%b", "partition": "%P", "reason": "%R", "comment": "%k", "folder": "%Z"}
SEPARATOR = "|"
TITLES = ("JOB", "RULE", "OF", "STATE", "TIME", "LIMIT", "NODES", "CPUS", "MEMORY", "GPUS", "PARTITION", "REASON")


@dataclass(frozen=True)
class QueuedJob:
    """One waiting or running job."""

    rule: str
    wildcards: str
    """The rule's wildcards, joined by underscores."""
    fields: dict[str, str]
    """What squeue says, by the names of FIELDS."""


def queued_jobs(root: Path) -> list[QueuedJob]:
    """Return the user's jobs that a snakemake in `root` submitted, oldest first.

    Raises:
        WorldtuneError: there is no squeue, or SLURM does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--sort=i", f"--format={SEPARATOR.join(FIELDS.values())}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except FileNotFoundError as error:
        raise WorldtuneError("squeue is not on this machine. Log in to a node of the cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise WorldtuneError("SLURM did not answer within 30 s. Look at `sinfo`, or try again later.") from error
    except subprocess.CalledProcessError as error:
        raise WorldtuneError(f"squeue failed: {error.stderr.strip()}") from error
    return parse(answer, root)


def parse(answer: str, root: Path) -> list[QueuedJob]:
    """Return the jobs of squeue's answer that belong to the workflow in `root`.

    The plugin writes `rule_<rule>_wildcards_<values>` into the comment, and submits from the workflow's folder.
    """
    jobs = []
    for line in answer.splitlines():
        fields = dict(zip(FIELDS, line.split(SEPARATOR, len(FIELDS) - 1), strict=True))
        if Path(fields["folder"]) == root.resolve() and fields["comment"].startswith("rule_"):
            rule, _, wildcards = fields["comment"].removeprefix("rule_").partition("_wildcards_")
            jobs.append(QueuedJob(rule, wildcards, fields))
    return jobs


def table(jobs: list[QueuedJob]) -> str:
    """Return the jobs as aligned lines with a heading."""
    shown = ("state", "time", "limit", "nodes", "cpus", "memory", "gpus", "partition", "reason")
    rows = [TITLES, *((job.fields["job"], job.rule, job.wildcards, *map(job.fields.get, shown)) for job in jobs)]
    texts = [[str(cell).removeprefix("gres:") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts
    )
