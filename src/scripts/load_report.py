"""Compare the checkpoints of a run with its networks, by name and shape, without reading a weight.

python src/scripts/load_report.py --run edge_posttrain --output results/edge_posttrain/load_report.json
"""

import argparse
from pathlib import Path

from worldtune.common.script import run
from worldtune.recipe.identity import check_fingerprint, load_report_values
from worldtune.recipe.load import load_recipe, recipe_path


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the checkpoints of a run with its networks.")
    parser.add_argument("--run", required=True, help="name of the recipe")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--checkpoints", default=Path("checkpoints"), type=Path, help="folder of the checkpoints")
    parser.add_argument("--expect", metavar="FINGERPRINT", help="refuse if the recipe's values are not these")
    args = parser.parse_args()
    recipe = load_recipe(args.run)
    check_fingerprint(args.expect, load_report_values(recipe), str(recipe_path(args.run)))
    # Imported late: a typo on the command line should not wait for PyTorch.
    from worldtune.transfer1.load_report import write_load_report

    write_load_report(recipe, args.output, checkpoints_dir=args.checkpoints)


if __name__ == "__main__":
    run(main)
