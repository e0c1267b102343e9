"""Train a recipe, or continue its attempt.

torchrun --nproc_per_node=8 src/scripts/train.py edge_posttrain
torchrun --nproc_per_node=2 src/scripts/train.py demo_edge_posttrain -- training.max_iter=20     # on a laptop's CPU
torchrun --nproc_per_node=8 src/scripts/train.py edge_posttrain --preflight      # memory, time; trains nothing
python src/scripts/train.py edge_posttrain --dryrun -- training.max_iter=100     # writes config.yaml, trains nothing
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from worldtune.common.script import run
from worldtune.dataset.config import dataset_of, load_datasets
from worldtune.recipe.identity import check_fingerprint, values_that_affect
from worldtune.recipe.load import load_recipe, recipe_path
from worldtune.recipe.project import config_path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a recipe, or continue its attempt.",
        epilog="Overrides follow --: key.path=value, values in YAML. They make an attempt of their own.",
    )
    parser.add_argument("recipe", help="recipe's name, path of its TOML file, or the original experiment's name")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that go over the recipe's")
    parser.add_argument("--dryrun", action="store_true", help="print and write the resolved recipe, train nothing")
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="measure memory and time of two steps at the largest shape, write preflight.json beside the manifest's "
        "place, train nothing",
    )
    parser.add_argument("--expect", metavar="FINGERPRINT", help="refuse if the recipe's values are not these")
    parser.add_argument(
        "--manifest",
        type=Path,
        help="where the manifest goes; its folder is the run's; default: manifest.json in $OUTPUT_ROOT/<run>, or in "
        "results/<run>",
    )
    # Overrides may follow options, with or without the --, which some launchers swallow.
    return parser.parse_intermixed_args([argument for argument in sys.argv[1:] if argument != "--"])


def main() -> None:
    arguments = parse_arguments()
    path = recipe_path(arguments.recipe)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_fingerprint(arguments.expect, values_that_affect(recipe, "weights", "outcome"), str(path))
    # The workflow looks for the attempt beside its manifest, whatever a user's shell exports.
    by_hand = Path(os.environ.get("OUTPUT_ROOT", "results")) / path.stem
    run_folder = arguments.manifest.parent if arguments.manifest else by_hand
    # Imported late: a dry run and a typo on the command line should not wait for PyTorch.
    if arguments.dryrun:
        from worldtune.training.config import config_text, write_config

        dataset_of(path.stem, recipe, load_datasets(config_path()))
        print(config_text(recipe))
        # That of the run's folder is the recipe's, which overrides are no part of.
        if arguments.overrides:
            print("# not written, since values are overridden")
        else:
            print(f"# written to {write_config(recipe, run_folder)}")
        return
    from worldtune.training.run import run_training
    from worldtune.transfer1.task import build_task

    status = run_training(
        recipe,
        run_folder,
        build_task,
        has_overrides=bool(arguments.overrides),
        manifest=arguments.manifest,
        preflight_only=arguments.preflight,
        datasets=Path("datasets"),
        checkpoints=Path("checkpoints"),
    )
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # All is written and closed. Threads of libraries can abort a process while its interpreter is taken down (seen
        # on a busy machine), which torchrun would report as a training that failed.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run(main)
