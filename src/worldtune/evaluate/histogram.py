"""A histogram as SVG text, for pages that must not wait for a plotting library to load."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

WIDTH, HEIGHT = 300, 120
LEFT, BOTTOM, TOP = 8, 22, 20
MOST_BARS = 30


def histogram(title: str, parts: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> str:
    """Return an SVG picture of how values are distributed, with the parts stacked upon each other.

    Args:
        title: stands above.
        parts: the values of each part; there is at least one value in all.
        colours: the colour of each part.
    """
    values = np.concatenate([np.asarray(part, np.float64) for part in parts.values()])
    edges = bar_edges(values)
    counts = {name: np.histogram(np.asarray(part, np.float64), edges)[0] for name, part in parts.items()}
    highest = max(int(sum(counts.values()).max()), 1)  # type: ignore[union-attr]
    width = (WIDTH - 2 * LEFT) / (len(edges) - 1)
    scale = (HEIGHT - BOTTOM - TOP) / highest
    bars = []
    for bar in range(len(edges) - 1):
        floor = float(HEIGHT - BOTTOM)
        words = ", ".join(f"{counts[name][bar]} {name}" for name in parts)
        for name in parts:
            height = counts[name][bar] * scale
            floor -= height
            if height:
                bars.append(
                    f"<rect x='{LEFT + bar * width:.1f}' y='{floor:.1f}' width='{max(width - 1, 0.5):.1f}' "
                    f"height='{height:.1f}' fill='{colours[name]}'><title>{edges[bar]:.6g} to {edges[bar + 1]:.6g}: "
                    f"{html.escape(words)}</title></rect>"
                )
    low, high = f"{values.min():.6g}", f"{values.max():.6g}"
    base = HEIGHT - BOTTOM + 14
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{html.escape(title)}'>"
        f"<text x='{LEFT}' y='13' class='title'>{html.escape(title)}</text>"
        f"<line x1='{LEFT}' x2='{WIDTH - LEFT}' y1='{HEIGHT - BOTTOM}' y2='{HEIGHT - BOTTOM}'/>{''.join(bars)}"
        f"<text x='{LEFT}' y='{base}'>{low}</text>"
        f"<text x='{WIDTH / 2}' y='{base}' text-anchor='middle'>highest bar: {highest}</text>"
        f"<text x='{WIDTH - LEFT}' y='{base}' text-anchor='end'>{high}</text></svg>"
    )


def bar_edges(values: np.ndarray) -> np.ndarray:
    """Return the edges of at most MOST_BARS bars of equal width, around whole numbers where all values are whole."""
    low, high = float(values.min()), float(values.max())
    if (values == np.round(values)).all():
        step = max(1.0, np.ceil((high - low + 1) / MOST_BARS))
        return np.arange(low - 0.5, high + step, step)
    if high == low:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, MOST_BARS + 1)
