"""Put the pieces of a tensor-parallel checkpoint together in one file.

    python src/scripts/merge_checkpoint.py DIR/STEM.split.json --output FILE.pt
    python src/scripts/merge_checkpoint.py DIR/STEM_model_mp_0.pt DIR/STEM_model_mp_1.pt ... --output FILE.safetensors

With a manifest, damaged files and those of another split are refused. Without one (files of the original's training
runs), name the files of all ranks in their order.
"""

import argparse
from pathlib import Path

from worldtune.checkpoint.splitting import merge_checkpoint
from worldtune.common.script import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", help="a .split.json, or the files of all ranks")
    parser.add_argument("--output", type=Path, required=True, help="a .pt or .safetensors file")
    arguments = parser.parse_args()
    merge_checkpoint(arguments.sources, arguments.output)


if __name__ == "__main__":
    run(main)
