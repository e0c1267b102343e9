"""Remove what runs have left.

python src/scripts/clean.py cheap                # logs and caches
python src/scripts/clean.py attempts --run NAME  # old attempts of a run; asks first
python src/scripts/clean.py everything           # results, datasets and checkpoints; asks first
"""

import argparse
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.script import run
from worldtune.evaluate.places import check_name
from worldtune.workflow.cleaning import cheap_files, confirm, everything, old_attempts, remove


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cheap", "attempts", "everything"))
    parser.add_argument("--run", help="name of the run whose attempts are meant")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    root = Path()
    if arguments.what == "cheap":
        removal = cheap_files(root)
    elif arguments.what == "everything":
        removal = everything(root)
    elif arguments.run:
        trained = (path.parent.name for path in (root / "results").glob("*/attempts"))
        check_name(arguments.run, trained, "run with attempts", "results/")
        removal = old_attempts(root / "results" / arguments.run)
    else:
        raise WorldtuneError("attempts needs --run (RUN=...), the name of a run.")
    print(removal.describe())
    if not removal.paths:
        print("nothing to remove")
    elif confirm("Remove this for good?", yes=arguments.yes or arguments.what == "cheap"):
        remove(removal, root)
        print("removed")
    else:
        print("nothing was removed")


if __name__ == "__main__":
    run(main)
