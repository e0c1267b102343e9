"""Fetch the metadata of an HD-VILA dataset.

python src/scripts/fetch_metadata.py --dataset hdvila
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.hdvila import fetch_metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="name of the dataset in config/config.yaml")
    arguments = parser.parse_args()
    fetch_metadata(Path("datasets") / arguments.dataset / "source/metadata.jsonl")


if __name__ == "__main__":
    run(main)
