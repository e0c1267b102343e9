"""Put the pieces of a tensor-parallel checkpoint together in one file.

    python src/scripts/merge_checkpoint.py DIR/STEM.split.json --output FILE.pt
    python src/scripts/merge_checkpoint.py RUN/iter_000001000_model_mp_*.pt --weights ema --output FILE.safetensors

With a manifest, damaged files and those of another split are refused. Without one (files of the original's training
runs), name the files of all ranks. Such files may hold raw weights ("model") and their average ("ema"): --weights raw
takes the first, --weights ema the second with the buffers that have no average, as the original's converter does.
Without it, the average alone is taken where there is one, as the original's loader does.
"""

import argparse
from pathlib import Path

from worldtune.checkpoint.splitting import merge_checkpoint
from worldtune.common.script import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", help="a .split.json, or the files of all ranks")
    parser.add_argument("--output", type=Path, required=True, help="a .pt or .safetensors file")
    parser.add_argument("--weights", choices=("raw", "ema"), help="what to take of training files (default: see above)")
    arguments = parser.parse_args()
    merge_checkpoint(arguments.sources, arguments.output, arguments.weights)


if __name__ == "__main__":
    run(main)
