"""Make tiny networks with random weights for every annotator and the captioner, to try a dataset on a CPU.

python src/scripts/make_demo_annotators.py --checkpoints checkpoints
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.demo.annotators import make_annotators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder of all checkpoints")
    arguments = parser.parse_args()
    print(make_annotators(arguments.checkpoints))


if __name__ == "__main__":
    run(main)
