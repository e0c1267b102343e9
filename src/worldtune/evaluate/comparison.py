"""What a comparison of runs shows: its figures and tables; notebooks/run_comparison.ipynb calls them.

The first run is the one that the others are compared with. Losses are averaged over the clips only that all runs have
measured at a noise level: a mean over other clips says nothing of the runs.
"""

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from worldtune.common.words import count_of
from worldtune.evaluate import report
from worldtune.evaluate.figures import (
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    STYLE,
    change_percent,
    data_url,
    file_url,
    log_scale,
    note,
    palette,
)
from worldtune.evaluate.report import RunRecord

VERSION = 2
"""Raised when a change of the comparison should make the existing ones anew."""

GAP_PIXELS = 4
"""White space between the pictures of a grid, as transfer1.drawing leaves it; reading it there would load PyTorch."""

Records = Sequence[RunRecord]
ABSENT = "not set"


def heading(records: Records) -> str:
    """Return the title and each run's sentence, in Markdown."""
    lines = []
    for record in records:
        description = report.recipe_of(record).get("experiment", {}).get("description", "")
        lines.append(f"* **{record.run}**" + (f": {description}" if description else ""))
    return f"# {' / '.join(record.run for record in records)}\n\n" + "\n".join(lines)


def summary_table(records: Records) -> pd.DataFrame:
    """Return each run in a column: length, data, hardware, speed, memory, control effect."""
    columns = {}
    for record in records:
        manifest = record.manifest
        hardware = {key: value for key, value in manifest.get("hardware", {}).items() if not isinstance(value, dict)}
        effect = report.control_effect(record)
        columns[record.run] = {
            "final step": str(manifest["final_step"]),
            "dataset": f"{manifest['dataset']['name']} ({manifest['dataset']['digest'][:8]})",
            "hardware": ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in sorted(hardware.items())),
            "median step": f"{manifest['median_step_s']:.3g} s",
            "peak memory": f"{manifest['peak_memory_gb']:.3g} GiB",
            "own control lower": f"{effect.num_own_lower} of {effect.num_pairs} (clip, sigma) pairs"
            if effect.num_pairs
            else "not measured",
            "git commit": str(manifest.get("git", {}).get("commit", "not known"))[:12],
        }
    return pd.DataFrame(columns)


def without_recipe(records: Records) -> list[str]:
    """Return the names of the runs that carry no recipe."""
    return [record.run for record in records if not report.recipe_of(record)]


def differences(records: Records) -> pd.DataFrame:
    """Return the recipe keys, input files and dataset digests in which the runs differ, a column for each run."""
    flat = [_flat(_inputs(record)) for record in records if report.recipe_of(record)]
    names = [record.run for record in records if report.recipe_of(record)]
    keys = sorted({key for values in flat for key in values} - set(report.PASSED_OVER))
    rows = {key: [values.get(key, ABSENT) for values in flat] for key in keys}
    return pd.DataFrame(
        {key: cells for key, cells in rows.items() if len(set(cells)) > 1}, index=pd.Index(names, dtype=object)
    ).T


def _inputs(record: RunRecord) -> dict[str, Any]:
    manifest = record.manifest
    files = {
        name: str(facts.get("sha256", ""))[:12] for name, facts in manifest.get("checkpoints", {}).items() if facts
    }
    return {
        **report.recipe_of(record),
        "input files (SHA-256)": {**files, "dataset digest": manifest["dataset"]["digest"][:12]},
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def plot_training(records: Records) -> Figure:
    """Draw the smoothed training loss, gradient norm and learning rate of all runs over each other."""
    # One span for all: curves smoothed differently would differ by that alone.
    span = max(min(len(record.metrics) for record in records) // 20, 5)
    with plt.rc_context(STYLE):
        figure, (loss_axes, norm_axes, rate_axes) = plt.subplots(1, 3, figsize=(11, 3.2), width_ratios=[1.5, 1, 1])
        for record, colour in zip(records, palette(len(records)), strict=True):
            metrics = record.metrics
            steps = metrics["step"]
            for axes, column in ((loss_axes, "edm_loss"), (norm_axes, "grad_norm")):
                axes.plot(steps, metrics[column], color=colour, alpha=0.15, linewidth=0.7)
                axes.plot(steps, report.smooth(metrics[column], span), color=colour, linewidth=1.7, label=record.run)
        loss_axes.set(title=f"Loss (thin: each step; thick: mean over about {span})", xlabel="step")
        loss_axes.set_ylabel("weighted squared error, log scale")
        log_scale(loss_axes, "y")
        norm_axes.set(title="Gradient norm", xlabel="step", ylabel="before clipping, log scale")
        log_scale(norm_axes, "y")
        colours = palette(len(records))
        report.draw_learning_rates(
            rate_axes, [(record.metrics, colour) for record, colour in zip(records, colours, strict=True)]
        )
        _legend(figure, loss_axes.get_legend_handles_labels())
    return figure


def _legend(figure: Figure, handles_and_labels: tuple[list[Any], list[Any]]) -> None:
    handles, labels = handles_and_labels
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 4), fontsize=9)


def common_pairs(records: Records) -> pd.DataFrame:
    """Return the (clip_id, sigma) that every run has measured with the clip's own control at its last measurement."""
    common: pd.DataFrame | None = None
    for record in records:
        pairs = _last(record)[["clip_id", "sigma"]].drop_duplicates()
        common = pairs if common is None else common.merge(pairs, on=["clip_id", "sigma"])
    assert common is not None
    return common.sort_values(["sigma", "clip_id"]).reset_index(drop=True)


def _own(record: RunRecord) -> pd.DataFrame:
    validation = record.validation
    if validation.empty:
        return pd.DataFrame({"step": [], "sigma": [], "clip_id": [], "control": [], "loss": []})
    return validation[validation["control"] == "own"]


def _last(record: RunRecord) -> pd.DataFrame:
    own = _own(record)
    return own[own["step"] == own["step"].max()]


def comparability(records: Records) -> str:
    """Say in one sentence over how many held-out clips the runs are compared, or why they cannot be."""
    pairs = common_pairs(records)
    if pairs.empty:
        return (
            "No held-out clip was measured at the same noise level by all of these runs: their held-out losses cannot "
            "be compared. Runs on one dataset have their held-out clips in common."
        )
    clips, levels = pairs["clip_id"].nunique(), pairs["sigma"].nunique()
    sentence = (
        f"Over {count_of(clips, 'held-out clip')} and {count_of(levels, 'noise level')} that all runs measured, each "
        "clip with its own control."
    )
    others = {record.run: _last(record)["clip_id"].nunique() - clips for record in records}
    if any(others.values()):
        named = ", ".join(f"{more} of {run}" for run, more in others.items() if more)
        sentence += f" Left out, since not all runs measured them: {named}."
    digests = {(record.manifest["dataset"]["name"], record.manifest["dataset"]["digest"]) for record in records}
    if len(digests) > 1:
        sentence += " The runs were trained on different data, so equal clip names may hide different contents."
    return sentence


def held_out_curves(record: RunRecord, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return a run's held-out loss averaged over the clips of `pairs`: index step, a column for each sigma.

    A step at which one of a noise level's clips was not measured has no value there.
    """
    own = _own(record).merge(pairs, on=["clip_id", "sigma"])
    grouped = own.groupby(["step", "sigma"])
    means, counts = grouped["loss"].mean().unstack("sigma"), grouped.size().unstack("sigma")
    needed = pairs.groupby("sigma").size()
    return means.where(counts == needed.reindex(counts.columns), np.nan).sort_index()


def plot_held_out(records: Records) -> Figure:
    """Draw the held-out loss of all runs over each other, one panel for each noise level.

    Its title says by how much the final loss of each other run differs from the first one's.
    """
    pairs = common_pairs(records)
    table, first = held_out_table(records), records[0].run
    sigmas = sorted(pairs["sigma"].unique())
    columns = min(max(len(sigmas), 1), 3)
    rows = -(-len(sigmas) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(11, 2.3 * rows + 0.4), squeeze=False, sharex=True)
        curves = [held_out_curves(record, pairs) for record in records]
        for axes, sigma in zip(grid.flat, sigmas, strict=False):
            for record, curve, colour in zip(records, curves, palette(len(records)), strict=True):
                axes.plot(curve.index, curve[sigma], color=colour, marker="o", markersize=3, label=record.run)
            changes = [table.loc[sigma, _against(record, first)] for record in records[1:]]
            axes.set_title(f"sigma {sigma:g}: {', '.join(changes)}")
        report.finish_grid(list(grid.flat), len(sigmas), columns)
        _legend(figure, grid[0][0].get_legend_handles_labels())
    return figure


def held_out_table(records: Records) -> pd.DataFrame:
    """Return the final held-out loss at each noise level, a column for each run, and its change against the first."""
    pairs = common_pairs(records)
    table = pd.DataFrame(
        {
            record.run: _last(record).merge(pairs, on=["clip_id", "sigma"]).groupby("sigma")["loss"].mean()
            for record in records
        }
    )
    first = records[0].run
    for record in records[1:]:
        ratio = table[record.run] / table[first]
        table[_against(record, first)] = [change_percent(value) for value in ratio]
    table.insert(0, "clips", pairs.groupby("sigma").size())
    return table.rename(columns={record.run: f"{record.run}, step {_final_step(record)}" for record in records})


def _against(record: RunRecord, first: str) -> str:
    return f"{record.run} against {first}"


def _final_step(record: RunRecord) -> int:
    return int(_last(record)["step"].iloc[0])


def plot_control_effect(records: Records) -> Figure:
    """Draw how much lower the loss is with the clip's own control than with another clip's, over the steps."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(11, 3))
        for record, colour in zip(records, palette(len(records)), strict=True):
            steps = sorted(record.validation["step"].unique()) if len(record.validation) else []
            change = [(report.control_effect(record, step).mean_ratio - 1) * 100 for step in steps]
            axes.plot(steps, change, color=colour, marker="o", markersize=3, label=record.run)
        axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
        axes.set(title="Own control against another clip's: change of the loss over all noise levels, %", xlabel="step")
        axes.legend()
    return figure


def has_control_effect(records: Records) -> bool:
    """Return whether any run has measured its loss with another clip's control."""
    return any(len(record.validation) and not report.paired_controls(record).empty for record in records)


def speed_table(records: Records) -> pd.DataFrame:
    """Return seconds of each part of a step, tokens a second and peak memory, one row for each run."""
    rows = {}
    for record in records:
        parts = report.step_time_table(record)["seconds"]
        rows[record.run] = {
            **{f"{part}, s": seconds for part, seconds in parts.items()},
            "median step, s": record.metrics["step_s"].median(),
            "tokens a second": record.metrics["tokens_per_s"].median(),
            "peak memory, GiB": record.manifest["peak_memory_gb"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def plot_speed(records: Records) -> Figure:
    """Draw throughput over the steps, and where the time of a step goes in each run."""
    colours = {"data": GREY, "forward": BLUE, "backward": ORANGE, "optimizer": GREEN, "other": LIGHT_GREY}
    with plt.rc_context(STYLE):
        height = 2.6 + 0.25 * max(len(records) - 2, 0)
        figure, (speed_axes, time_axes) = plt.subplots(1, 2, figsize=(11, height), width_ratios=[1, 1.2])
        for number, (record, colour) in enumerate(zip(records, palette(len(records)), strict=True)):
            metrics = record.metrics
            speed_axes.plot(metrics["step"], metrics["tokens_per_s"], color=colour, linewidth=1, label=record.run)
            left = 0.0
            for part, seconds in report.step_time_table(record)["seconds"].items():
                label = str(part) if number == 0 else None
                time_axes.barh(number, seconds, left=left, color=colours[str(part)], height=0.6, label=label)
                left += seconds
        speed_axes.set(title="Tokens a second", xlabel="step")
        speed_axes.set_ylim(bottom=0)
        speed_axes.legend(loc="lower right", fontsize=8.5)
        time_axes.set_yticks(range(len(records)), [record.run for record in records])
        time_axes.invert_yaxis()
        time_axes.set(title="Mean time of a step", xlabel="seconds")
        time_axes.grid(visible=False, axis="y")
        handles, labels = time_axes.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper right", ncols=5, fontsize=8.5, columnspacing=1.2, handlelength=1
        )
    return figure


def common_clips(records: Records) -> list[str]:
    """Return the ids of the clips that every run has drawn samples of, in the first run's order."""
    drawn = [[clip["clip_id"] for clip in record.samples.get("clips", [])] for record in records]
    return [clip_id for clip_id in drawn[0] if all(clip_id in others for others in drawn[1:])]


def sample_gallery(records: Records) -> str:
    """Return HTML that shows the samples of the same clips side by side, all files embedded."""
    missing = [record.run for record in records if not record.samples]
    if missing:
        return note(f"No sample was drawn for {', '.join(missing)}: there is nothing to compare.")
    common = common_clips(records)
    if not common:
        return note("These runs have drawn no clip in common; runs on one dataset draw the same ones.")
    by_run = [{clip["clip_id"]: clip for clip in record.samples["clips"]} for record in records]
    parts = [f"<p>{html.escape(_drawing_note(records))}</p>", *map(report.network_note, records)]
    for clip_id in common:
        cells = []
        seen: set[tuple[str, ...]] = set()
        for record, clips in zip(records, by_run, strict=True):
            kinds = tuple(report.control_kinds(record))
            titles = [f"control ({kind})" for kind in kinds] or ["control"]
            # Runs with the same controls were given the same hints.
            first = len(titles) + 1 if kinds in seen else 0
            seen.add(kinds)
            titles += ["ground truth", record.run]
            cells.append(_columns(record, clips[clip_id], first, titles[first:]))
        rows = ", ".join(report.frame_names(by_run[0][clip_id]))
        caption = f"{html.escape(by_run[0][clip_id]['caption'])} <em>Below the videos: {rows}.</em>"
        parts.append(
            f"<figure><figcaption><b>{html.escape(clip_id)}</b> {caption}</figcaption>"
            f"<div class='cells'>{''.join(cells)}</div></figure>"
        )
    return "\n".join(parts)


def _columns(record: RunRecord, clip: Mapping[str, Any], first: int, titles: Sequence[str]) -> str:
    """Return a cell with the columns from `first` on of a drawn clip: control, ground truth, sample."""
    width, height, shown = clip["width"], clip["height"], len(titles)
    with Image.open(record.samples_dir / clip["grid"]) as grid:
        left = first * (width + GAP_PIXELS)
        part = grid.convert("RGB").crop((left, 0, left + shown * (width + GAP_PIXELS) - GAP_PIXELS, grid.height))
    content = io.BytesIO()
    part.save(content, "PNG")
    # The video has all columns side by side; the page shows the wanted ones by cropping, without encoding them again.
    crop = f"aspect-ratio:{shown * width}/{height};object-fit:cover;object-position:right"
    video = file_url(record.samples_dir / clip["video"], "video/mp4")
    named = "".join(f"<span>{html.escape(title)}</span>" for title in titles)
    alternative = f"{', '.join(report.frame_names(clip))} of {', '.join(titles)}"
    return (
        f"<div class='cell' style='grid-column:span {shown}'><div class='columns'>{named}</div>"
        f"<video style='{crop}' src='{video}' controls loop muted autoplay playsinline></video>"
        f"<img src='{data_url(content.getvalue(), 'image/png')}' alt='{html.escape(alternative)}'></div>"
    )


def _drawing_note(records: Records) -> str:
    settings = [
        f"{record.run}: step {record.samples['step']}, {count_of(record.samples['num_steps'], 'sampler step')}, "
        f"guidance {record.samples['guidance']:g}, seed {record.samples['seed']}"
        for record in records
    ]
    return "Held-out clips that all runs have drawn. " + "; ".join(settings) + "."
