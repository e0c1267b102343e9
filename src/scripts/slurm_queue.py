"""List the SLURM jobs of this workflow with the rules that they run.

python src/scripts/slurm_queue.py
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.workflow.queue import queued_jobs, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    jobs = queued_jobs(Path())
    print(table(jobs) if jobs else "no jobs of this workflow")


if __name__ == "__main__":
    run(main)
