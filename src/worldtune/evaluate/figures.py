"""How figures and tables look in all notebooks."""

import base64
import html
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

BLUE, ORANGE, GREEN, RED, GREY = "#2b6cb0", "#c8691c", "#2f855a", "#b83232", "#8a94a0"
LIGHT_GREY = "#d0d6dc"
STYLE: Any = {
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b8c0c8",
    "axes.grid": True,
    "grid.color": "#e8ecf0",
    "axes.axisbelow": True,
    "xtick.color": "#5a6570",
    "ytick.color": "#5a6570",
    "axes.labelcolor": "#5a6570",
    "legend.frameon": False,
}
WORDS = {
    "clip_id": "clip",
    "fewest_frames": "fewest frames",
    "fps": "frames a second",
    "in_its_words": "in its words",
    "most_frames": "most frames",
    "num_frames": "frames",
    "num_tokens": "tokens",
    "own": "own control",
    "other": "another clip's control",
    "own_lower": "clips with the lower loss from their own control",
    "source_key": "source",
    "start_s": "from second",
    "end_s": "to second",
}
"""Titles of columns whose names in files are not words."""
LINEAR_DECADES = 0.8
"""Below this span of a logarithmic axis, round multiples of a power of ten may all lie outside of it."""


def change_percent(ratio: float) -> str:
    """Return by how much a ratio differs from 1, such as "-3.1 %"; without a sign where it rounds to nothing."""
    if np.isnan(ratio):
        return ""
    percent = round((ratio - 1) * 100, 1)
    return f"{percent:+.1f} %" if percent else "0.0 %"


def power_of_ten(values: pd.Series) -> int:
    """Return the power of ten that the greatest value is written with."""
    greatest = float(values.max())
    return int(np.floor(np.log10(greatest))) if greatest > 0 else 0


def as_html(table: pd.DataFrame) -> str:
    """Return a table as plain HTML with short numbers, column names in words, and nothing where a value is missing."""
    if any(name is not None for name in table.index.names):
        table = table.reset_index()
    titled = table.rename(columns=lambda name: WORDS.get(name, name))
    index = not isinstance(table.index, pd.RangeIndex)
    return titled.to_html(border=0, float_format="{:.4g}".format, index=index, na_rep="")


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with labels far enough apart to be read; its data must be drawn already."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    limits = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = abs(np.log10(limits[1] / limits[0]))
    if decades < LINEAR_DECADES:
        axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(NullLocator())
    else:
        subs = (1.0, 2.0, 5.0) if decades < 1.5 else (1.0, 3.0) if decades < 2.8 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=6))
        axis.set_minor_locator(NullLocator() if len(subs) > 1 else LogLocator(subs=(3.0,), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def palette(number: int) -> list[Any]:
    """Return colours that are told apart, one for each of `number` things."""
    named = [BLUE, ORANGE, GREEN, RED, "#6b46c1", "#0e7c86", "#97266d", GREY]
    if number <= len(named):
        return named[:number]
    return list(plt.get_cmap("turbo")(np.linspace(0.05, 0.95, number)))


def data_url(content: bytes, mime: str) -> str:
    """Return bytes as a URL that a page carries in itself."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def file_url(path: Path, mime: str) -> str:
    """Return the content of a file as `data_url`."""
    return data_url(path.read_bytes(), mime)


def note(text: str) -> str:
    """Return HTML of a remark that stands where something is missing."""
    return f"<p class='note'>{html.escape(text)}</p>"
