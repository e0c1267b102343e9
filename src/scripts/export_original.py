"""Write a training checkpoint in the layout of the original's training runs, iter_*_model_mp_*.pt, at any time.

    python src/scripts/export_original.py --run edge_posttrain --output checkpoints/mine/edge
    python src/scripts/export_original.py --run edge_posttrain --step 4000 --degree 8 --output DIR

The run may be in training, stopped or finished; it is only read. Runs here start from such files too:
checkpoints.control = "mine/edge/iter_000004000.pt" in a recipe.
"""

import argparse
from pathlib import Path

from worldtune.common.script import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--attempt", help="identity of the attempt; default: the finished or the only one")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--degree", type=int, default=8, help="tensor-parallel ranks of the files; default: 8")
    parser.add_argument("--output", type=Path, required=True, help="folder of the files")
    parser.add_argument("--results", default=Path("results"), type=Path, help="folder of the runs")
    parser.add_argument("--checkpoints", default=Path("checkpoints"), type=Path, help="folder of the checkpoints")
    args = parser.parse_args()
    # Imported late: a typo on the command line should not wait for PyTorch.
    from worldtune.transfer1.original_layout import find_attempt, write_original_layout

    attempt = find_attempt(args.results / args.run, args.attempt)
    write_original_layout(attempt, args.output, step=args.step, degree=args.degree, checkpoints_dir=args.checkpoints)


if __name__ == "__main__":
    run(main)
