"""Fetch one entry of the checkpoint catalogue (config/checkpoints.toml) from the model hub.

    python src/scripts/fetch_checkpoint.py nvidia/Cosmos-Transfer1-7B/base_model.pt --checkpoints checkpoints
    python src/scripts/fetch_checkpoint.py google-t5/t5-11b
    python src/scripts/fetch_checkpoint.py --list

Interrupted downloads go on where they stopped. Gated repositories need HF_TOKEN; HF_ENDPOINT names a mirror.
"""

import argparse
from pathlib import Path

from worldtune.checkpoint.catalogue import CATALOGUE_FILE, load_catalogue
from worldtune.checkpoint.hub import fetch
from worldtune.common.hub import Hub
from worldtune.common.script import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="owner/repository/file, or owner/repository for a folder entry")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder of all checkpoints")
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE_FILE)
    parser.add_argument("--list", action="store_true", help="print the catalogue and stop")
    arguments = parser.parse_args()
    catalogue = load_catalogue(arguments.catalogue)
    if arguments.list:
        for request in catalogue.requests:
            print(request.describe())
    elif arguments.name is None:
        parser.error("give a name, or --list")
    else:
        arguments.checkpoints.mkdir(parents=True, exist_ok=True)
        print(fetch(catalogue.find(arguments.name), arguments.checkpoints, hub=Hub()))


if __name__ == "__main__":
    run(main)
