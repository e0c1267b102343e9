"""Write the values of a recipe that training depends on.

python src/scripts/training_values.py --run edge_posttrain --output results/edge_posttrain/training_values.json
"""

import argparse
from pathlib import Path

from worldtune.common.files import write_json
from worldtune.common.script import run
from worldtune.recipe.identity import check_fingerprint, values_that_affect
from worldtune.recipe.load import load_recipe, recipe_path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the values of a recipe that training depends on.")
    parser.add_argument("--run", required=True, help="name of the recipe")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--expect", metavar="FINGERPRINT", help="refuse if the recipe's values are not these")
    args = parser.parse_args()
    values = values_that_affect(load_recipe(args.run), "weights", "outcome")
    check_fingerprint(args.expect, values, str(recipe_path(args.run)))
    write_json(args.output, values)


if __name__ == "__main__":
    run(main)
