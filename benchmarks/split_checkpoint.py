"""Splitting and merging a checkpoint of the 7B layout: wall time and peak resident memory of each script.

Makes a base_model.pt (bf16, 571 tensors, 14.5 GB), cuts it for 8 ranks, cuts the split again for 4, and merges it to
.pt and to .safetensors. Each script is a process of its own, whose peak counts what it has mapped from files. Ends with
status 1 where a peak is 4 GB or more, the split takes more than 1.42 times the input, or the merged .pt has other bytes
than the input. Needs 40 GB on the disk of --folder, and removes what it made.

python benchmarks/split_checkpoint.py --folder /tmp
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import torch

from worldtune.common.files import sha256_file
from worldtune.recipe.network import NetworkConfig
from worldtune.transfer1.network import BaseNetwork

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "src/scripts"
MAX_PEAK_GB = 4.0
MAX_RATIO = 1.42
WRAPPER = """
import resource, subprocess, sys
returncode = subprocess.call(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(returncode)
"""


def make_checkpoint(path: Path) -> None:
    """Write noise in the layout of Cosmos-Transfer1-7B/base_model.pt with torch.save, in little memory."""
    sizes = tomllib.loads((REPOSITORY / "config/models/transfer1_7b.toml").read_text())
    with torch.device("meta"):
        layout = BaseNetwork(NetworkConfig.model_validate(sizes["base"])).state_dict()
    generator = torch.Generator().manual_seed(0)
    noise = path.with_name("noise")
    with open(noise, "wb") as file:
        for _ in range(max(tensor.numel() for tensor in layout.values()) // 2**20):
            values = torch.randn(2**20, generator=generator).bfloat16()
            file.write(values.view(torch.uint8).numpy().data)
    tensors = {}
    for name, like in layout.items():
        # Each maps the same file; pages that are written to become its own.
        tensor = torch.from_file(str(noise), size=like.numel(), dtype=torch.bfloat16)
        tensor[:: 2**18] = torch.randn(len(tensor[:: 2**18]), generator=generator).bfloat16()
        tensors[f"base_model.net.{name}"] = tensor.reshape(like.shape)
    with open(path, "wb") as file:
        torch.save(tensors, file)
    noise.unlink()


def measure(label: str, *command: str | Path) -> bool:
    """Run a command, print its seconds and peak resident memory; return whether the peak is below the bound."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WRAPPER, sys.executable, *command], stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    peak = re.search(r"^PEAK (\d+)$", done.stderr, re.MULTILINE)
    if done.returncode or peak is None:
        sys.exit(done.stderr)
    peak_gb = int(peak[1]) * 1024 / 1e9
    print(f"{label}: {seconds:.0f} s, peak {peak_gb:.2f} GB", flush=True)
    return peak_gb < MAX_PEAK_GB


def size_gb(*files: Path) -> float:
    """Return the bytes of files in GB."""
    return sum(file.stat().st_size for file in files) / 1e9


def run(folder: Path) -> bool:
    """Measure each script; return whether all bounds hold."""
    source, split, output = folder / "base_model.pt", folder / "tp_8", folder / "merged"
    make_checkpoint(source)
    total = size_gb(source)
    start = time.monotonic()
    digest = sha256_file(source)
    print(f"baseline, SHA-256 of the input of {total:.2f} GB: {time.monotonic() - start:.0f} s")
    fine = measure("baseline, importing the library", "-c", "import worldtune.checkpoint.splitting")
    fine &= measure("split for 8", SCRIPTS / "split_checkpoint.py", source, "--degree", "8", "--output-dir", split)
    source.unlink()
    ratio = size_gb(*split.glob("*.pt")) / total
    print(f"the split takes {ratio:.4f} times the input")
    manifest = split / "base_model.split.json"
    merge = (SCRIPTS / "merge_checkpoint.py", manifest, "--output")
    fine &= measure("merge to .pt", *merge, output.with_suffix(".pt"))
    equal = sha256_file(output.with_suffix(".pt")) == digest
    print(f"the merged .pt {'equals' if equal else 'differs from'} the input")
    output.with_suffix(".pt").unlink()
    fine &= measure("merge to .safetensors", *merge, output.with_suffix(".safetensors"))
    output.with_suffix(".safetensors").unlink()
    split_again = ("--degree", "4", "--output-dir", folder / "tp_4")
    fine &= measure("split of 8 for 4", SCRIPTS / "split_checkpoint.py", manifest, *split_again)
    return fine and ratio <= MAX_RATIO and equal


def main() -> None:
    """Run in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the temporary folder is made")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(REPOSITORY / "src")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if not run(Path(folder)):
            sys.exit(f"error: a peak of {MAX_PEAK_GB} GB or more, a ratio above {MAX_RATIO}, or other bytes.")


if __name__ == "__main__":
    main()
