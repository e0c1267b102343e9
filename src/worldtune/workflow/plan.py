"""What each job was planned for, kept for the moment at which it starts on a cluster."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worldtune.common.files import atomic_path
from worldtune.recipe.identity import fingerprint


class Plan:
    """Fingerprints of the values that jobs were planned with, one small file a job.

    A job on a cluster is a snakemake of its own, which reads recipes and config anew. If it computed its fingerprint
    itself, a recipe that was edited while the job waited in the queue would be trained under the name of the old one.
    """

    def __init__(self, folder: Path, *, scheduling: Callable[[], bool], inside_job: bool) -> None:
        """Keep fingerprints below `folder`.

        Args:
            folder: made when it is needed.
            scheduling: whether this process may write, which is so once it schedules jobs and nobody else does.
            inside_job: whether this process runs a job that another one planned.
        """
        self._folder = folder
        self._scheduling = scheduling
        self._inside_job = inside_job
        self._unwritten: dict[str, str] = {}

    def fingerprint(self, job: str, values: Mapping[str, Any]) -> str:
        """Return what `job` is to be told to expect: the fingerprint of `values`, or inside a job the planned one.

        Args:
            job: rule and wildcards, such as "train/edge_posttrain".
            values: what the job's output depends on, as read now.
        """
        path = self._folder / f"{job}.txt"
        if self._inside_job and path.exists():
            return path.read_text(encoding="utf-8")
        found = fingerprint(values)
        if not self._inside_job:
            self._unwritten[job] = found
            if self._scheduling():
                self.write()
        return found

    def write(self) -> None:
        """Write what is not written yet."""
        for job, text in self._unwritten.items():
            path = self._folder / f"{job}.txt"
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        self._unwritten.clear()
