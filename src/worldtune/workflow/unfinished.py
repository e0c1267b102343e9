"""What a snakemake was about to make anew stays due, also where that snakemake ends before it is made.

Snakemake deletes the output of a job before it runs, and of a job that fails it keeps nothing. A missing file that only
stands between others makes no job due, so that the next call would find the final files there, older than none of their
inputs, and say that nothing is to be done. So the outputs that are still there, but were to be made anew, get the mark
that snakemake gives the outputs of a running job: with `rerun-incomplete` it makes them again. Each job's end removes
the mark of its outputs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UnfinishedWork:
    """The outputs of the jobs that this process has planned, marked until they are made.

    Types of snakemake, which has no public ones for this: `dag` is its DAG, `persistence` its Persistence.
    """

    def __init__(self) -> None:
        """Know of no work yet."""
        self._marked: dict[Any, None] = {}

    def mark(self, dag: Any, persistence: Any) -> None:
        """Mark the existing outputs of the jobs that are due now.

        Jobs behind a checkpoint that is due are left out: only its output tells whether they are due.
        """
        due = [job for job in dag.needrun_jobs() if job not in self._marked]
        if not due:
            return
        undecided = _behind_checkpoints(dag)
        for job in due:
            if job not in undecided and any(Path(str(output)).exists() for output in job.output):
                persistence.started(job)
                self._marked[job] = None

    def settle(self, dag: Any, persistence: Any) -> None:
        """Remove the marks of what turned out not to be due, and set those of what is; for the end of the process."""
        self.mark(dag, persistence)
        due = set(dag.needrun_jobs())
        for job in self._marked:
            if job not in due:
                for output in job.output:
                    persistence._unmark_incomplete(persistence._get_key(output))
        self._marked.clear()


def _behind_checkpoints(dag: Any) -> set[Any]:
    checkpoints: Iterable[Any] = [job for job in dag.needrun_jobs() if job.is_checkpoint]
    return set(dag.bfs(dag.depending, *checkpoints)) - set(checkpoints)
