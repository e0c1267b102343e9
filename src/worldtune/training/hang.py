"""From where all ranks are when none goes on: which of them keep the others waiting, as one sentence for people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from worldtune.training.whereabouts import Place, Whereabouts


@dataclass(frozen=True, kw_only=True)
class Hang:
    """Why a job hangs."""

    missing: list[int]
    """The ranks that did not arrive where the others wait."""
    silent: list[int]
    """Those of them that do not answer."""
    message: str
    """Which ranks these are, what they do instead, and where the others wait."""


def explain(places: Sequence[Whereabouts], silent: Iterable[int], waited_s: float) -> Hang:
    """Say who keeps whom waiting.

    A rank is missing if it does not answer, or is in no collective, or has not begun one that others wait in. Where all
    are in collectives, but in different ones, most ranks are right; of as many, those that have come less far, since
    the others went past it.

    Args:
        places: where each rank is, or was last.
        silent: ranks that do not answer.
        waited_s: seconds for which no rank has gone on.
    """
    silent = set(silent)
    waiting: dict[int, Place] = {}
    for place in places:
        if place.rank not in silent and (collective := _waits_in(place, places)) is not None:
            waiting[place.rank] = collective
    missing = {place.rank for place in places} - waiting.keys()
    if not missing:
        usual = _usual(places, waiting)
        missing = {rank for rank, collective in waiting.items() if collective != usual}
    parts = [_describe_missing(place, silent, waiting) for place in places if place.rank in missing]
    by_place: dict[tuple[Place, str], list[int]] = {}
    for place in places:
        if place.rank not in missing:
            by_place.setdefault((waiting[place.rank], _when(place)), []).append(place.rank)
    for (collective, when), ranks in by_place.items():
        verb = "waits" if len(ranks) == 1 else "wait"
        parts.append(f"{_ranks(ranks)} {verb} in {_text(collective)}, {when}")
    return Hang(
        missing=sorted(missing),
        silent=sorted(silent),
        message=f"no process has made progress for {waited_s:.0f} s: {'; '.join(parts)}. The same command goes on from "
        "the last checkpoint.",
    )


def _waits_in(place: Whereabouts, places: Iterable[Whereabouts]) -> Place | None:
    """Return the collective that a rank waits in; None where it is elsewhere, or lacks one that others wait in."""
    if place.collective is not None:
        return place.collective
    # On a GPU the main thread may have gone on, or wait for the device outside of any collective.
    awaited = [pending for other in places for pending in other.pending]
    has_begun_all = all(place.begun.get(pending.group, pending.number) >= pending.number for pending in awaited)
    return place.pending[0].place if place.pending and has_begun_all else None


def _usual(places: Iterable[Whereabouts], waiting: dict[int, Place]) -> Place:
    counts: dict[Place, tuple[int, int]] = {}
    for place in places:
        collective = waiting[place.rank]
        count, marks = counts.get(collective, (0, 0))
        counts[collective] = (count + 1, max(marks, place.marks))
    return min(counts, key=lambda collective: (-counts[collective][0], counts[collective][1]))


def _describe_missing(place: Whereabouts, silent: set[int], waiting: dict[int, Place]) -> str:
    name = f"rank {place.rank}"
    if place.rank in silent:
        return (
            f"{name} (process {place.pid} on {place.host}) does not answer, so it is stopped or stuck outside Python; "
            f"last seen in {_when(place)}"
        )
    if place.rank in waiting:
        return f"{name} waits elsewhere, in {_text(waiting[place.rank])}, {_when(place)}"
    doing = f": {place.doing.operation}, called by {place.doing.at}" if place.doing is not None else ""
    return f"{name} is in {_when(place)}{doing}"


def _when(place: Whereabouts) -> str:
    return place.phase if place.step is None else f"{place.phase} of step {place.step}"


def _text(collective: Place) -> str:
    return f"{collective.operation} ({collective.at})" if collective.at else collective.operation


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
