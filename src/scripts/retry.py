"""Try the failed downloads of a dataset again, and only those.

python src/scripts/retry.py --dataset hdvila
"""

import argparse
import subprocess
import sys
from pathlib import Path

from worldtune.common.errors import WorldtuneError
from worldtune.common.script import run
from worldtune.dataset.config import find_dataset
from worldtune.dataset.download import STAGE, forget_failed
from worldtune.dataset.manifest import manifest_path
from worldtune.recipe.project import config_path
from worldtune.workflow.lock import WorkflowLock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a dataset of the config file")
    parser.add_argument("--cores", default="1", help="passed to snakemake")
    arguments = parser.parse_args()
    config = find_dataset(config_path(), arguments.dataset)
    lock = WorkflowLock(Path(".snakemake"))
    lock.acquire()
    forgotten = forget_failed(arguments.dataset, config)
    lock.release()
    if not forgotten:
        print(f"no download of {arguments.dataset} has failed")
        return
    print(f"{sum(forgotten.values())} failed downloads are tried again, in the shards {', '.join(forgotten)}")
    targets = [str(manifest_path(Path("datasets") / arguments.dataset, STAGE, shard)) for shard in forgotten]
    done = subprocess.run([sys.executable, "-m", "snakemake", "--cores", arguments.cores, *targets], check=False)
    if done.returncode:
        raise WorldtuneError("snakemake failed, see above. The same downloads are tried by the next snakemake command.")


if __name__ == "__main__":
    run(main)
