"""Cut a checkpoint into one file for each tensor-parallel rank.

    python src/scripts/split_checkpoint.py checkpoints/REPOSITORY/FILE.pt --degree 8 --output-dir DIR

Runs in one process on the CPU, in the memory of a few tensors; the manifest DIR/FILE.split.json appears last. The
manifest of another split is a source too. Of a training file with raw weights ("model") and their average ("ema"), the
average is taken, as the original's loader does; --weights chooses.
"""

import argparse
from pathlib import Path

from worldtune.checkpoint.splitting import split_checkpoint
from worldtune.common.script import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a .pt or .safetensors checkpoint, or a .split.json")
    parser.add_argument("--degree", type=int, required=True, help="number of tensor-parallel ranks")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the pieces and their manifest")
    parser.add_argument("--weights", choices=("raw", "ema"), help="what to take of a training file")
    arguments = parser.parse_args()
    split_checkpoint(arguments.source, arguments.output_dir, arguments.degree, arguments.weights)


if __name__ == "__main__":
    run(main)
