"""Splits and merges take the memory of a few tensors, not that of the file."""

import subprocess
import sys
from pathlib import Path

import torch

NUM_TENSORS, NUM_ROWS, NUM_COLUMNS = 20, 2048, 4096
FILE_MIB = NUM_TENSORS * NUM_ROWS * NUM_COLUMNS * 2 / 2**20
CHILD = """
import re, sys
from pathlib import Path
from worldtune.checkpoint.splitting import merge_checkpoint, split_checkpoint

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

small, large = Path(sys.argv[1]), Path(sys.argv[2])
peaks = []
for source in (small, large):
    folder = source.parent
    split = split_checkpoint(source, folder / "4", 4)
    split_checkpoint(split, folder / "2", 2)
    for suffix in (".pt", ".safetensors"):
        merge_checkpoint([split], folder / f"merged{suffix}")
    files = sorted((folder / "4").glob("*_mp_*.pt"))
    merge_checkpoint(files, folder / "unlisted.pt")
    split_checkpoint(folder / "merged.safetensors", folder / "1", 1)
    peaks.append(peak_mib())
print(peaks[1] - peaks[0])
"""


def test_peak_memory(tmp_path: Path) -> None:
    names = ("to_q.0.weight", "layer2.weight", "x_embedder.proj.1.weight")
    for folder, num_tensors, num_rows in (("small", 3, 8), ("large", NUM_TENSORS, NUM_ROWS)):
        tensors = {
            f"net.blocks.block{number}.{names[number % 3]}": torch.full(
                (num_rows, NUM_COLUMNS), number, dtype=torch.bfloat16
            )
            for number in range(num_tensors)
        }
        (tmp_path / folder).mkdir()
        torch.save(tensors, tmp_path / folder / "x.pt")
    command = [sys.executable, "-c", CHILD, tmp_path / "small" / "x.pt", tmp_path / "large" / "x.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    # Tensors are of 16 MiB: one is read while its copy is written.
    assert FILE_MIB > 300
    assert float(done.stdout) < FILE_MIB / 4
