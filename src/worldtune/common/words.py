"""Numbers and values in sentences."""

MAX_SHOWN = 100
"""Characters of a value that a message shows."""


def count_of(number: int, noun: str) -> str:
    """Return "1 step", "2 steps"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def shown(value: object) -> str:
    """Return a value that comes from a file as Python writes it, cut where it is long: messages go into tables."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
