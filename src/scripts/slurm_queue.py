"""List the SLURM jobs of this workflow with the rules that they run.

python src/scripts/slurm_queue.py
"""

from pathlib import Path

from worldtune.common.script import run
from worldtune.workflow.queue import queued_jobs, table


def main() -> None:
    jobs = queued_jobs(Path())
    print(table(jobs) if jobs else "no jobs of this workflow")


if __name__ == "__main__":
    run(main)
