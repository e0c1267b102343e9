import numpy as np
import pytest

from worldtune.dataset.lookalikes import NEAR_BITS, find_lookalikes
from worldtune.media.looks import FINGERPRINT_BITS


def flipped(code: int, count: int, rng: np.random.Generator) -> int:
    for bit in rng.choice(FINGERPRINT_BITS, count, replace=False):
        code ^= 1 << int(bit)
    return code


def hexadecimal(codes: list[int]) -> list[str]:
    return [f"{code:0{FINGERPRINT_BITS // 4}x}" for code in codes]


@pytest.mark.parametrize("seed", range(5))
def test_no_near_pair_is_missed_and_no_far_one_found(seed):
    rng = np.random.default_rng(seed)
    codes = [int.from_bytes(rng.bytes(FINGERPRINT_BITS // 8), "big") for _ in range(60)]
    # From the same to just beyond what is near, each of a code of its own.
    codes += [flipped(code, distance, rng) for distance, code in enumerate(codes[: NEAR_BITS + 2])]
    distances = np.array([[(one ^ other).bit_count() for other in codes] for one in codes])
    np.fill_diagonal(distances, FINGERPRINT_BITS)
    near = distances <= NEAR_BITS
    found = find_lookalikes(hexadecimal(codes))
    assert (found.nearest >= 0).tolist() == near.any(axis=1).tolist()
    chosen = np.flatnonzero(found.nearest >= 0)
    assert found.distances[chosen].tolist() == distances.min(axis=1)[chosen].tolist()
    assert found.distances[chosen].tolist() == distances[chosen, found.nearest[chosen]].tolist()
    assert int(near.sum()) == 2 * (NEAR_BITS + 1)


def test_bits_that_are_spread_as_evenly_as_they_can_be_are_found():
    # Two in each band but one: the worst that can be near.
    code = sum(0b11 << 16 * band for band in range(15)) | 1 << 240
    assert code.bit_count() == NEAR_BITS
    assert find_lookalikes(hexadecimal([0, code])).distances.tolist() == [NEAR_BITS, NEAR_BITS]
    assert find_lookalikes(hexadecimal([0, code | 1 << 241])).distances.tolist() == [-1, -1]


def test_groups_are_those_that_lead_to_each_other():
    chain = [(1 << 20 * step) - 1 for step in range(4)]
    far = (1 << FINGERPRINT_BITS) - 1
    found = find_lookalikes(hexadecimal([*chain, far, far, far]))
    assert len(set(found.groups[:4])) == 1
    assert len(set(found.groups[4:])) == 1
    assert found.groups[0] != found.groups[4]
    # Each of the equal ones names another, so that all are named.
    assert sorted(found.nearest[4:].tolist()) == [4, 5, 6]
    assert (found.nearest != np.arange(7)).all()
    assert found.distances[4:].tolist() == [0, 0, 0]


def test_nothing_looks_like_nothing():
    assert len(find_lookalikes([]).groups) == 0
    assert find_lookalikes(hexadecimal([7])).nearest.tolist() == [-1]
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        find_lookalikes(["ab"])
