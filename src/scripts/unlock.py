"""Release a lock that a snakemake left in this folder, if no snakemake works here.

python src/scripts/unlock.py
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.workflow.lock import unlock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(unlock(Path()))


if __name__ == "__main__":
    run(main)
