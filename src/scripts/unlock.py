"""Release a lock that a snakemake left in this folder, if no snakemake works here.

python src/scripts/unlock.py
"""

from pathlib import Path

from worldtune.common.script import run
from worldtune.workflow.lock import unlock


def main() -> None:
    print(unlock(Path()))


if __name__ == "__main__":
    run(main)
