"""Write requirements.lock and environment.yml from pyproject.toml and the installed environment.

python src/scripts/lock.py
python src/scripts/lock.py --check
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.workflow import dependencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files that exist, write nothing")
    arguments = parser.parse_args()
    if arguments.check:
        dependencies.check(Path())
    else:
        dependencies.write(Path())


if __name__ == "__main__":
    run(main)
