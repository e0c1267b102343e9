"""Try again what failed in a dataset for a reason that may pass, and only that.

    python src/scripts/retry.py --dataset hdvila

Downloads that failed, clips about which a captioner gave no answer, and clips over which a process or a network died.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.retry import failures_in_words, find_failed, forget_failed, manifests_of
from worldtune.recipe.project import config_path
from worldtune.workflow.lock import WorkflowLock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--cores", default="1", help="passed to snakemake")
    arguments = parser.parse_args()
    name = arguments.dataset
    config = find_dataset(config_path(), name)
    lock = WorkflowLock(Path(".snakemake"))
    lock.acquire()
    forgotten = forget_failed(name, config)
    lock.release()
    if not forgotten:
        print(f"nothing of {name} failed for a reason that may pass")
        return
    print(f"tried again, of {name}:\n{failures_in_words(forgotten)}", flush=True)
    targets = map(str, manifests_of(forgotten, Path("datasets") / name))
    done = subprocess.run([sys.executable, "-m", "snakemake", "--cores", arguments.cores, *targets], check=False)
    if done.returncode:
        raise WorldtuneError("snakemake failed, see above. The same clips are tried by the next snakemake command.")
    left = find_failed(name, config)
    print(f"failed again, of {name}:\n{failures_in_words(left)}" if left else f"nothing of {name} failed again")


if __name__ == "__main__":
    run(main)
