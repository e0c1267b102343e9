"""Which clips look alike: fingerprints that differ in few bits, found without comparing each clip with each other.

A fingerprint of 256 bits is cut into 16 bands. Two that differ in at most 31 bits differ in at most one bit of some
band, since 16 bands with two each would be 32. So the clips of a band's value and of its 16 neighbours are compared,
and no pair is missed (multi-index hashing: Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index
Hashing", CVPR 2012).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldtune.media.looks import FINGERPRINT_BITS

BAND_BITS = 16
NUM_BANDS = FINGERPRINT_BITS // BAND_BITS
NEAR_BITS = 2 * NUM_BANDS - 1
"""Largest distance of clips that look alike, one bit in eight; what the bands find for certain. Copies that were
scaled, encoded again, graded or cut by half a second are within it; unrelated clips differ in nearly half of all."""
PAIRS_AT_ONCE = 1 << 15
"""Pairs compared in one step, so that they stay in the processor's cache."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Lookalikes:
    """For each of N clips."""

    groups: Integers
    """[N]; equal for clips that look alike, directly or through others."""
    nearest: Integers
    """[N]; the clip that looks most like it, -1 where none looks alike."""
    distances: Integers
    """[N]; differing bits to the nearest one, -1 where there is none."""


def find_lookalikes(fingerprints: Sequence[str]) -> Lookalikes:
    """Find the clips whose fingerprints (FINGERPRINT_BITS as hexadecimal digits) differ in at most NEAR_BITS bits."""
    digits = FINGERPRINT_BITS // 4
    if any(len(fingerprint) != digits for fingerprint in fingerprints):
        raise ValueError(f"a fingerprint has {digits} hexadecimal digits")
    data = np.frombuffer(bytes.fromhex("".join(fingerprints)), np.uint64).reshape(-1, FINGERPRINT_BITS // 64)
    # Equal ones are gathered first: many would make a pair of each two.
    codes, first, which = np.unique(data, axis=0, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    num_codes = len(codes)
    groups = np.arange(num_codes)
    # Distance and number in one value, so that the smallest is the nearest, and of several the first.
    best = np.full(num_codes, np.iinfo(np.int64).max)
    for one, other, distance in _near_pairs(codes):
        np.minimum.at(best, one, distance * num_codes + other)
        np.minimum.at(best, other, distance * num_codes + one)
        groups = _joined(groups, one, other)
    found = best < np.iinfo(np.int64).max
    nearest = np.where(found, first[best % num_codes] if num_codes else 0, -1)[which]
    distances = np.where(found, best // max(num_codes, 1), -1)[which]
    _meet_equals(which, nearest, distances)
    return Lookalikes(groups[which], nearest, distances)


def _meet_equals(which: Integers, nearest: Integers, distances: Integers) -> None:
    """Make each clip of equal fingerprints the nearest of the one before it, and the last one that of the first."""
    order = np.argsort(which, kind="stable")
    sizes = np.bincount(which)
    begins = np.cumsum(sizes) - sizes
    for begin, size in zip(begins[sizes > 1], sizes[sizes > 1], strict=True):
        members = order[begin : begin + size]
        nearest[members] = np.roll(members, -1)
        distances[members] = 0


def _near_pairs(codes: NDArray[np.uint64]) -> Iterator[tuple[Integers, Integers, Integers]]:
    """Yield arrays of (one, other, distance) of near codes (uint64 [N, words]); a pair may come more than once."""
    bands = codes.view(np.uint16)
    flips = [0, *(1 << bit for bit in range(BAND_BITS))]
    for band in range(NUM_BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        values = bands[order, band].astype(np.int64)
        begins = np.searchsorted(values, np.arange((1 << BAND_BITS) + 1))
        # The words of other bands first: within a band's value their own says little.
        words = np.roll(np.arange(codes.shape[1]), -(band * BAND_BITS // 64) - 1)
        columns = [np.ascontiguousarray(codes[order, word]) for word in words]
        for flip in flips:
            # Each pair once: from the one that lacks the bit, and of equal values from the one that comes first.
            ask = np.flatnonzero((values & flip) == 0) if flip else np.arange(len(values))
            wanted = values[ask] | flip
            for one, other in _pairs(ask, begins[wanted] if flip else ask + 1, begins[wanted + 1]):
                distances = np.bitwise_count(columns[0][one] ^ columns[0][other]).astype(np.int64)
                for column in columns[1:]:
                    near = np.flatnonzero(distances <= NEAR_BITS)
                    one, other = one[near], other[near]
                    distances = distances[near] + np.bitwise_count(column[one] ^ column[other])
                near = np.flatnonzero(distances <= NEAR_BITS)
                if near.size:
                    yield order[one[near]], order[other[near]], distances[near]


def _pairs(ask: Integers, begins: Integers, ends: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Yield each number of `ask` with the numbers from its begin to its end, some at a time."""
    counts = ends - begins
    ask, begins, counts = ask[counts > 0], begins[counts > 0], counts[counts > 0]
    totals = np.cumsum(counts)
    start = 0
    while start < len(ask):
        done = totals[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, done + PAIRS_AT_ONCE, side="right")))
        some = counts[start:stop]
        offsets = np.arange(totals[stop - 1] - done) - np.repeat(totals[start:stop] - some - done, some)
        yield np.repeat(ask[start:stop], some), np.repeat(begins[start:stop], some) + offsets
        start = stop


def _joined(groups: Integers, one: Integers, other: Integers) -> Integers:
    """Return the groups (each named by one of its members) after those of each pair have become one."""
    while True:
        apart = groups[one] != groups[other]
        if not apart.any():
            return groups
        low = np.minimum(groups[one[apart]], groups[other[apart]])
        high = np.maximum(groups[one[apart]], groups[other[apart]])
        names = np.arange(len(groups))
        np.minimum.at(names, high, low)
        # A name may lead to another one.
        while (names[names] != names).any():
            names = names[names]
        groups = names[groups]
