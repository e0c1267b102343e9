"""Finding clips that look alike among many: seconds and peak memory, against comparing each clip with each other.

python benchmarks/lookalikes.py --clips 100000

Fingerprints are random, with copies that differ in up to NEAR_BITS bits. A tenth of the clips share one band of bits,
as clips of one camera do. Status 1 where a pair is missed.
"""

import argparse
import resource
import sys
import time

import numpy as np

from worldtune.dataset.lookalikes import NEAR_BITS, find_lookalikes
from worldtune.media.looks import FINGERPRINT_BITS

BLOCK = 64
BASELINE_CLIPS = 20000
"""Clips that the baseline compares; its time grows with the square."""


def make_fingerprints(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return uint64 [count, words]; each hundredth is a copy of the one before it with some bits turned."""
    codes = rng.integers(0, 1 << 63, (count, FINGERPRINT_BITS // 64), dtype=np.uint64)
    codes[::10, 0] = (codes[::10, 0] & np.uint64(0xFFFFFFFFFFFF0000)) | np.uint64(0x1234)
    for index in range(100, count, 100):
        bits = np.zeros(FINGERPRINT_BITS, np.uint8)
        bits[rng.choice(FINGERPRINT_BITS, rng.integers(0, NEAR_BITS + 1), replace=False)] = 1
        codes[index] = codes[index - 1] ^ np.packbits(bits).view(np.uint64)
    return codes


def compare_all(codes: np.ndarray) -> np.ndarray:
    """Return whether another code is near each of them: uint64 [N, words] -> bool [N]."""
    near = np.zeros(len(codes), bool)
    for start in range(0, len(codes), BLOCK):
        rows = codes[start : start + BLOCK]
        distances = np.zeros((len(rows), len(codes)), np.uint16)
        for word in range(codes.shape[1]):
            distances += np.bitwise_count(rows[:, word, None] ^ codes[None, :, word])
        distances[np.arange(len(rows)), start + np.arange(len(rows))] = FINGERPRINT_BITS
        near[start : start + BLOCK] = (distances <= NEAR_BITS).any(axis=1)
    return near


def main() -> int:
    """Measure, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    count = parser.parse_args().clips
    codes = make_fingerprints(count, np.random.default_rng(0))
    few = codes[:BASELINE_CLIPS]
    start = time.perf_counter()
    expected = compare_all(few)
    baseline = (time.perf_counter() - start) * (count / len(few)) ** 2
    how = "" if len(few) == count else f" (from {len(few)} clips, by the square)"
    print(f"baseline, each with each other: {baseline:.1f} s{how}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = find_lookalikes([row.tobytes().hex() for row in codes])
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    alike = int((found.nearest >= 0).sum())
    print(f"{count} clips, {alike} of them alike: {seconds:.1f} s, {baseline / seconds:.1f} x; {grown:.0f} MiB more")
    missed = int((expected & (find_lookalikes([row.tobytes().hex() for row in few]).nearest < 0)).sum())
    print(f"missed among {len(few)}: {missed} of {int(expected.sum())}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
