"""Compare the finished dataset of a run with its recipe: enough clips, long enough, with its control, views and text.

python src/scripts/dataset_report.py --run edge_posttrain --output results/edge_posttrain/dataset_report.json
"""

import argparse
from pathlib import Path

from worldtune.common.files import write_json
from worldtune.common.script import run
from worldtune.dataset.clips import load_dataset
from worldtune.dataset.fitting import dataset_report
from worldtune.recipe.identity import check_fingerprint, dataset_report_values
from worldtune.recipe.load import load_recipe, recipe_path


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the finished dataset of a run with its recipe.")
    parser.add_argument("--run", required=True, help="name of the recipe")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--datasets", default=Path("datasets"), type=Path, help="folder of the datasets")
    parser.add_argument("--expect", metavar="FINGERPRINT", help="refuse if the recipe's values are not these")
    args = parser.parse_args()
    recipe = load_recipe(args.run)
    check_fingerprint(args.expect, dataset_report_values(recipe), str(recipe_path(args.run)))
    write_json(args.output, dataset_report(load_dataset(args.datasets / recipe.data.dataset), recipe))


if __name__ == "__main__":
    run(main)
