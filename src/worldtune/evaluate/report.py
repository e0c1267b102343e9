"""What the run report shows: the record of a run, and its figures and tables; notebooks/run_report.ipynb calls them."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.common.words import count_of
from worldtune.evaluate.dataset_overview import reason_table
from worldtune.evaluate.figures import (
    BLUE,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    STYLE,
    change_percent,
    file_url,
    log_scale,
    note,
    power_of_ten,
)
from worldtune.evaluate.places import run_folder
from worldtune.recipe.load import RECIPES, flatten, read_extension
from worldtune.training.manifest import read_manifest

VERSION = 5
"""Raised when a change of the report should make the existing ones anew."""

VALIDATION_COLUMNS = ("step", "sigma", "clip_id", "control", "loss")
SPLIT_WORDS = {"held_out": "held out"}
DEMO_NETWORK = "transfer1_demo"
"""What the sizes of the demo's networks begin with."""
MAIN_KEYS = (
    *("control.kind", "data.dataset", "data.num_frames", "data.resolution", "network.size"),
    *("checkpoints.base", "checkpoints.control", "checkpoints.init_from"),
    *("optimizer.learning_rate", "training.max_iter", "training.global_batch_size", "training.precision"),
    *("parallel.tensor", "parallel.data"),
)
"""Keys of a recipe that extends nothing which say most of it."""
PASSED_OVER = ("experiment.description",)
"""Keys that differ between any two recipes and say nothing of their results."""
SHOWN_CUT = 24
FEWEST_FOR_CURVES = 3
"""Measurements of the held-out loss; of fewer the table says all."""
STEP_PARTS = {"data_s": "data", "forward_s": "forward", "backward_s": "backward", "optimizer_s": "optimizer"}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that is known of one run."""

    run: str
    """Name of the run."""
    manifest: dict[str, Any]
    """What the training rule declared."""
    metrics: pd.DataFrame
    """One row a step, to the manifest's last one."""
    validation: pd.DataFrame
    """One row a (step, sigma, clip_id, control), to the manifest's last step."""
    previews: pd.DataFrame
    """Scores of previews, one row a (step, clip_id, guidance), to the manifest's last step; it may have no column."""
    attempt_dir: Path
    """Folder of the attempt that `manifest` names."""
    dataset: dict[str, Any]
    """The dataset's summary; empty where it is gone, or is not the one that was trained on."""
    clips: pd.DataFrame
    """One row a clip of the dataset; none where `dataset` is empty."""
    cut: tuple[str, ...]
    """Sources of the usable clips whose captions were cut to the dataset's text_max_tokens, sorted."""
    samples: dict[str, Any]
    """What sample.py wrote; empty where no sample was drawn."""
    samples_dir: Path
    """Where the files named in `samples` lie."""
    provenance: dict[str, Any]
    """What the export carries; empty before the export."""


def load_run(run_dir: Path, *, samples_dir: Path, datasets_dir: Path) -> RunRecord:
    """Read the record of a run.

    Args:
        run_dir: results/<run>.
        samples_dir: folder that sample.py wrote; it may be missing.
        datasets_dir: folder of the datasets; this run's may be missing.

    Raises:
        WorldtuneError: the run has no manifest or no metrics, or a line of its record is damaged.
    """
    manifest = read_manifest(run_dir, expected=None)
    attempt = run_dir / manifest["attempt"]
    previews = attempt / "previews.jsonl"
    dataset_dir = datasets_dir / manifest["dataset"]["name"]
    clips_path = dataset_dir / "clips.parquet"
    dataset = _read_optional(dataset_dir / "dataset.json")
    if dataset.get("digest") != manifest["dataset"]["digest"]:
        dataset = {}
    clips = pd.read_parquet(clips_path) if dataset and clips_path.is_file() else pd.DataFrame()
    return RunRecord(
        run=run_dir.name,
        manifest=manifest,
        metrics=_read_rows(attempt / "metrics.jsonl", manifest["final_step"]),
        validation=_read_rows(attempt / "validation.jsonl", manifest["final_step"], VALIDATION_COLUMNS),
        previews=_read_rows(previews, manifest["final_step"]) if previews.is_file() else pd.DataFrame(),
        attempt_dir=attempt,
        dataset=dataset,
        clips=clips,
        cut=_cut_captions(dataset_dir, clips),
        samples=_read_optional(samples_dir / "samples.json"),
        samples_dir=samples_dir,
        provenance=_read_optional(run_dir / "model" / "provenance.json"),
    )


def load_run_named(root: Path, run: str) -> RunRecord:
    """Read the record of a run of the repository at `root` by its name; errors as `run_folder` and `load_run`."""
    folder = run_folder(root, run)
    return load_run(folder, samples_dir=folder / "samples", datasets_dir=root / "datasets")


def _cut_captions(dataset_dir: Path, clips: pd.DataFrame) -> tuple[str, ...]:
    if clips.empty:
        return ()
    usable = clips[clips["status"] == "ok"].set_index("clip_id")["source_key"]
    shards = [
        pd.read_parquet(path, columns=["clip_id", "truncated"])
        for path in sorted((dataset_dir / "manifests" / "t5").glob("*.parquet"))
    ]
    cut = {clip for shard in shards for clip in shard.loc[shard["truncated"], "clip_id"]}
    return tuple(sorted(usable[usable.index.isin(cut)]))


def recipe_of(record: RunRecord) -> Mapping[str, Any]:
    """Return the recipe that a run was trained with; empty where it carries none."""
    recipe = record.manifest.get("recipe") or record.provenance.get("recipe") or {}
    return recipe if isinstance(recipe, Mapping) else {}


def recipe_table(record: RunRecord, root: Path) -> pd.DataFrame:
    """Return the values in which the run's recipe differs from those that it extends, or else its main values.

    Args:
        record: the run; its values are those that were trained with.
        root: root of the repository, where the recipes lie.
    """
    values = flatten(recipe_of(record))
    path = root / RECIPES / f"{record.run}.toml"
    extension = read_extension(path, root) if path.is_file() else None
    if extension is None or not extension.parents:
        main = {key: str(values[key]) for key in MAIN_KEYS if values.get(key) not in (None, "")}
        return pd.DataFrame({"value": main}, dtype=object)
    rows = {
        key: (values.get(key, own), extension.inherited.get(key, "the default"))
        for key, own in extension.own.items()
        if key not in PASSED_OVER and own != extension.inherited.get(key)
    }
    title = f"in {', '.join(extension.parents)}"
    return pd.DataFrame(
        {
            "value": {key: str(ours) for key, (ours, _) in rows.items()},
            title: {key: str(theirs) for key, (_, theirs) in rows.items()},
        },
        dtype=object,
    )


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read_rows(path: Path, last_step: int, columns: Sequence[str] = ()) -> pd.DataFrame:
    if not path.is_file():
        raise WorldtuneError(f"{path} does not exist, but the run's manifest names its folder. Train the run again.")
    text = path.read_text(encoding="utf-8")
    # A killed job may leave half a line at the end; the trainer writes that step again when it resumes.
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = [_parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    # The attempt may have gone on before max_iter was lowered.
    return pd.DataFrame([row for row in rows if row["step"] <= last_step], columns=None if rows else list(columns))


def _parse_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise WorldtuneError(
            f"{where}: expected a JSON object with a step, found {line[:80]!r}. The record is damaged: bring the file "
            "back from a copy, or delete its folder and train the run again."
        )
    return row


def smooth(values: pd.Series, span: int) -> pd.Series:
    """Return the exponentially weighted mean over about `span` values, unbiased at the start."""
    return values.ewm(span=max(span, 1), adjust=True).mean()


def plot_training(record: RunRecord) -> Figure:
    """Loss, gradient norm and learning rate over the steps."""
    metrics = record.metrics
    span = max(len(metrics) // 20, 5)
    with plt.rc_context(STYLE):
        figure, (loss_axes, norm_axes, rate_axes) = plt.subplots(1, 3, figsize=(11, 3), width_ratios=[1.5, 1, 1])
        _raw_and_smooth(loss_axes, metrics["step"], metrics["edm_loss"], span, BLUE)
        loss_axes.set(title=f"Loss (thin: each step; thick: mean over about {span})", xlabel="step")
        loss_axes.set_ylabel("weighted squared error, log scale")
        log_scale(loss_axes, "y")
        _raw_and_smooth(norm_axes, metrics["step"], metrics["grad_norm"], span, ORANGE)
        most = recipe_of(record).get("optimizer", {}).get("max_grad_norm")
        if most is not None:
            norm_axes.axhline(most, color=GREY, linestyle="--", linewidth=1)
        clipped = "" if most is None else f" (dashed: limit {most:g})"
        norm_axes.set(title=f"Gradient norm{clipped}", xlabel="step", ylabel="before clipping, log scale")
        log_scale(norm_axes, "y")
        draw_learning_rates(rate_axes, [(metrics, GREEN)])
    return figure


def draw_learning_rates(axes: Axes, curves: Sequence[tuple[pd.DataFrame, Any]]) -> None:
    """Draw the learning rates of the metrics in their colours, the power of ten in the label."""
    power = max(power_of_ten(metrics["learning_rate"]) for metrics, _ in curves)
    for metrics, colour in curves:
        axes.plot(metrics["step"], metrics["learning_rate"] / 10.0**power, color=colour, linewidth=1.7)
    axes.set(title="Learning rate", xlabel="step", ylabel=f"learning rate, times 1e{power}")
    axes.set_ylim(bottom=0)


def _raw_and_smooth(axes: Axes, steps: pd.Series, values: pd.Series, span: int, colour: str) -> None:
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps, smooth(values, span), color=colour, linewidth=1.8)


def plot_speed(record: RunRecord) -> Figure:
    """Throughput over the steps, and where the time of a step goes."""
    metrics = record.metrics
    with plt.rc_context(STYLE):
        figure, (speed_axes, time_axes) = plt.subplots(1, 2, figsize=(11, 2.4), width_ratios=[1, 1.2])
        speed_axes.plot(metrics["step"], metrics["tokens_per_s"], color=GREEN, linewidth=1)
        speed_axes.axhline(metrics["tokens_per_s"].median(), color=GREY, linestyle="--", linewidth=1)
        speed_axes.set(title="Tokens a second (dashed: median)", xlabel="step")
        speed_axes.set_ylim(bottom=0)
        parts = step_time_table(record)
        colours = [GREY, BLUE, ORANGE, GREEN, LIGHT_GREY]
        bars = time_axes.barh(parts.index, parts["seconds"], color=colours[-len(parts) :], height=0.7)
        time_axes.bar_label(bars, parts["share"], padding=4, color="#3e4c59")
        time_axes.set(title="Mean time of a step", xlabel="seconds")
        time_axes.set_xlim(right=parts["seconds"].max() * 1.12)
        time_axes.invert_yaxis()
        time_axes.grid(visible=False, axis="y")
    return figure


def step_time_table(record: RunRecord) -> pd.DataFrame:
    """Return mean seconds of each part of a step, the remainder as "other", and their shares."""
    # The first steps pay for what is made once.
    steady = record.metrics.iloc[min(3, len(record.metrics) - 1) :]
    seconds = {label: float(steady[column].mean()) for column, label in STEP_PARTS.items() if column in steady}
    total = float(steady["step_s"].mean())
    # Rounded, since what is left of a sum may be a remainder of the last digit.
    seconds["other"] = max(0.0, round(total - sum(seconds.values()), 6))
    table = pd.DataFrame({"seconds": seconds})
    table["share"] = [f"{value / max(sum(seconds.values()), 1e-12):.0%}" for value in table["seconds"]]
    return table


def held_out_means(record: RunRecord) -> pd.DataFrame:
    """Return the held-out loss averaged over clips: index step, columns (control, sigma).

    Where the number of clips has changed, only those are in it that a noise level was measured on at all of its steps.
    """
    validation = record.validation
    num_steps = validation.groupby("sigma")["step"].transform("nunique")
    always = validation.groupby(["sigma", "clip_id"])["step"].transform("nunique") == num_steps
    means = validation[always].groupby(["step", "control", "sigma"])["loss"].mean()
    return means.unstack(["control", "sigma"]).sort_index()


def has_held_out_curves(record: RunRecord) -> bool:
    """Return whether the held-out loss was measured often enough for curves."""
    return len(held_out_means(record)) >= FEWEST_FOR_CURVES


def plot_held_out(record: RunRecord) -> Figure:
    """Held-out loss at each noise level, with the clip's own control and with another clip's."""
    means, changes = held_out_means(record), held_out_table(record)["change"]
    sigmas = sorted(record.validation["sigma"].unique())
    columns = min(len(sigmas), 3)
    rows = -(-len(sigmas) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=(11, 2.3 * rows), squeeze=False, sharex=True)
        for axes, sigma in zip(grid.flat, sigmas, strict=False):
            for control, colour, label in (("own", BLUE, "own control"), ("other", ORANGE, "another clip's control")):
                if (control, sigma) in means:
                    axes.plot(means.index, means[control, sigma], color=colour, marker="o", markersize=3, label=label)
            axes.set_title(f"sigma {sigma:g}: {changes[sigma]}" if changes[sigma] else f"sigma {sigma:g}")
        finish_grid(list(grid.flat), len(sigmas), columns)
        handles, labels = grid[0][0].get_legend_handles_labels()
        if len(handles) > 1:
            figure.legend(handles, labels, loc="outside upper left", ncols=2)
    return figure


def finish_grid(panels: Sequence[Axes], used: int, columns: int) -> None:
    """Hide the panels that show nothing, and label the steps under the last panel of each column."""
    for axes in panels[used:]:
        axes.set_visible(False)
    for axes in panels[max(used - columns, 0) : used]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    panels[0].set_ylabel("loss")


def held_out_table(record: RunRecord) -> pd.DataFrame:
    """Return the held-out loss at each noise level before the first step and after the last, and its change."""
    means = held_out_means(record)["own"]
    first, last = means.iloc[0], means.iloc[-1]
    # A noise level that the recipe has been given since has no loss before the first step.
    change = [change_percent(after / before) for before, after in zip(first, last, strict=True)]
    table = pd.DataFrame({f"step {means.index[0]}": first, f"step {means.index[-1]}": last, "change": change})
    table.index.name = "sigma"
    return table.sort_index()


def paired_controls(record: RunRecord, step: int | None = None) -> pd.DataFrame:
    """Return the losses with own and other control beside each other, one row a (clip_id, sigma).

    Args:
        record: the run.
        step: which measurement; None takes the last.
    """
    validation = record.validation
    chosen = validation["step"].max() if step is None else step
    at_step = validation[validation["step"] == chosen]
    wide = at_step.pivot_table(index=["clip_id", "sigma"], columns="control", values="loss").reset_index()
    wide.columns.name = None
    wide = wide.reindex(columns=["clip_id", "sigma", "own", "other"])
    return wide.dropna(subset=["own", "other"])


@dataclass(frozen=True, kw_only=True)
class ControlEffect:
    """How much the control tells the model, at one measurement."""

    num_pairs: int
    """Pairs of (clip, noise level)."""
    num_own_lower: int
    """Pairs in which the clip's own control gives the lower loss."""
    mean_ratio: float
    """Geometric mean of own loss over other loss; below 1 where the control is used. NaN without pairs."""


def control_effect(record: RunRecord, step: int | None = None) -> ControlEffect:
    """Count in how many pairs the clip's own control gives the lower loss (see `paired_controls`)."""
    pairs = paired_controls(record, step)
    ratio = float(np.exp(np.log(pairs["own"] / pairs["other"]).mean())) if len(pairs) else float("nan")
    num_own_lower = int((pairs["own"] < pairs["other"]).sum())
    return ControlEffect(num_pairs=len(pairs), num_own_lower=num_own_lower, mean_ratio=ratio)


def plot_control_effect(record: RunRecord) -> Figure:
    """Own against other control over the steps, and pair by pair at the last measurement."""
    steps = sorted(record.validation["step"].unique())
    sigmas = sorted(record.validation["sigma"].unique())
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, len(sigmas)))
    pairs = paired_controls(record)
    with plt.rc_context(STYLE):
        figure, (step_axes, pair_axes) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=[1.3, 1])
        by_step = {step: paired_controls(record, step) for step in steps}
        for sigma, colour in zip(sigmas, colours, strict=True):
            ratios = []
            for step in steps:
                at = by_step[step][by_step[step]["sigma"] == sigma]
                ratios.append(np.exp(np.log(at["own"] / at["other"]).mean()) - 1 if len(at) else np.nan)
            percent = np.array(ratios) * 100
            step_axes.plot(steps, percent, color=colour, marker="o", markersize=3, label=f"sigma {sigma:g}")
            at_last = pairs[pairs["sigma"] == sigma]
            pair_axes.scatter(at_last["other"], at_last["own"], color=colour, s=18, alpha=0.8, linewidths=0)
        step_axes.axhline(0, color=GREY, linestyle="--", linewidth=1)
        step_axes.set(title="Own control against another clip's: change of the loss, %", xlabel="step")
        step_axes.legend(fontsize=8.5, ncols=2)
        if not pairs.empty:
            ends = [pairs[["own", "other"]].min().min() * 0.8, pairs[["own", "other"]].max().max() * 1.25]
            pair_axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1)
            pair_axes.set(xlim=ends, ylim=ends)
        pair_axes.set(xlabel="loss with another clip's control", ylabel="loss with its own")
        log_scale(pair_axes, "x")
        log_scale(pair_axes, "y")
        pair_axes.set_title(f"Each held-out clip at step {steps[-1]}")
    return figure


def control_effect_table(record: RunRecord) -> pd.DataFrame:
    """Return, for each noise level at the last measurement, mean losses and in how many clips the own control wins."""
    pairs = paired_controls(record)
    grouped = pairs.assign(own_lower=pairs["own"] < pairs["other"]).groupby("sigma")
    means = grouped.agg(own=("own", "mean"), other=("other", "mean"))
    return means.assign(own_lower=grouped["own_lower"].sum().astype(int), clips=grouped.size())


def heading(record: RunRecord) -> str:
    """Return the title and the recipe's sentence, in Markdown."""
    description = record.provenance.get("recipe", {}).get("experiment", {}).get("description", "")
    return f"# {record.run}\n\n{description}"


def control_effect_sentence(record: RunRecord) -> str:
    """Say in words how much the control tells the model at the last measurement."""
    if record.validation.empty:
        return "No held-out loss was measured."
    effect = control_effect(record)
    if not effect.num_pairs:
        return "Only one held-out clip of its size: there is no other control to compare with."
    return (
        f"At step {record.validation['step'].max()} the clip's own control gives the lower loss in "
        f"**{effect.num_own_lower} of {effect.num_pairs}** pairs of held-out clip and noise level; the loss differs "
        f"by {change_percent(effect.mean_ratio)} on the average (geometric mean)."
    )


def summary_table(record: RunRecord) -> pd.DataFrame:
    """Return the run in a few lines."""
    manifest = record.manifest
    hardware = {key: value for key, value in manifest.get("hardware", {}).items() if not isinstance(value, dict)}
    held_out = record.dataset.get("splits", {}).get("held_out", "?")
    effect = control_effect(record)
    rows = {
        "final step": manifest["final_step"],
        "clips": f"{record.dataset.get('num_clips', '?')} ({held_out} held out)",
        "hardware": ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in sorted(hardware.items())),
        "median step": f"{manifest['median_step_s']:.3g} s",
        "peak memory": f"{manifest['peak_memory_gb']:.3g} GiB",
    }
    if effect.num_pairs:
        rows["own control lower"] = (
            f"{effect.num_own_lower} of {effect.num_pairs} (clip, sigma) pairs; "
            f"loss {change_percent(effect.mean_ratio)} on the average"
        )
    return pd.DataFrame({"": rows})


def dataset_note(record: RunRecord) -> str:
    """Return HTML of a remark where the dataset is not shown or captions were cut; empty otherwise."""
    if record.cut:
        some = ", ".join(record.cut[:SHOWN_CUT]) + (", ..." if len(record.cut) > SHOWN_CUT else "")
        were = "was" if len(record.cut) == 1 else "were"
        return note(
            f"{count_of(len(record.cut), 'caption')} {were} cut to text_max_tokens of the dataset, so that the model "
            f"never saw the end: {some}."
        )
    if record.dataset:
        return ""
    name, digest = record.manifest["dataset"]["name"], record.manifest["dataset"]["digest"]
    return note(
        f"datasets/{name} is gone, or is not what this run was trained on (digest {digest[:8]}) any more. Its clips "
        "are not shown."
    )


def dataset_tables(record: RunRecord) -> dict[str, pd.DataFrame]:
    """Return the usable clips by split and size, and the unusable ones by reason."""
    clips = record.clips
    if clips.empty:
        return {}
    usable = clips[clips["status"] == "ok"]
    sizes = usable.assign(size=usable["width"].astype(int).astype(str) + "x" + usable["height"].astype(int).astype(str))
    by_size = sizes.groupby(["split", "size"]).agg(
        clips=("clip_id", "size"),
        fewest_frames=("num_frames", "min"),
        most_frames=("num_frames", "max"),
        fps=("fps", "median"),
        tokens=("num_tokens", "mean"),
    )
    tables = {"Usable clips": by_size.round(1).rename(index=SPLIT_WORDS, level="split")}
    left_out = reason_table(clips)
    if len(left_out):
        tables["Left out"] = left_out
    return tables


def clip_table(record: RunRecord, datasets_dir: Path, limit: int = 24) -> pd.DataFrame:
    """Return up to `limit` usable clips with their captions."""
    if record.clips.empty:
        return pd.DataFrame()
    folder = datasets_dir / record.manifest["dataset"]["name"] / "metas"
    chosen = record.clips[record.clips["status"] == "ok"].head(limit)
    captions = [_read_caption(folder / f"{clip_id}.txt") for clip_id in chosen["clip_id"]]
    table = chosen[["clip_id", "split", "source_key", "num_frames", "fps"]].assign(
        split=chosen["split"].replace(SPLIT_WORDS), caption=captions
    )
    return table.reset_index(drop=True)


def _read_caption(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def sample_gallery(record: RunRecord) -> str:
    """Return HTML that shows each drawn sample as a picture and as a video, all files embedded."""
    if not record.samples:
        return note("No sample was drawn for this run.")
    parts = [f"<p>{html.escape(_sample_note(record.samples))}</p>", network_note(record)]
    for clip in record.samples["clips"]:
        video = file_url(record.samples_dir / clip["video"], "video/mp4")
        grid = file_url(record.samples_dir / clip["grid"], "image/png")
        names, titles = frame_names(clip), [*control_titles(record), "ground truth", "sample"]
        parts.append(
            f"<figure><figcaption><b>{html.escape(clip['clip_id'])}</b> {html.escape(clip['caption'])}</figcaption>"
            f"<div class='grid'><div></div><div class='columns'>"
            f"{''.join(f'<span>{html.escape(title)}</span>' for title in titles)}</div>"
            f"<div></div><video src='{video}' controls loop muted autoplay playsinline></video>"
            f"<div class='rows'>{''.join(f'<span>{name}</span>' for name in names)}</div>"
            f"<img src='{grid}' alt='{', '.join(names)} of {html.escape(', '.join(titles))}'></div></figure>"
        )
    return "\n".join(parts)


def control_kinds(record: RunRecord) -> list[str]:
    """Return the control inputs of a run, in the order in which its samples show them; empty where it is not known."""
    control = recipe_of(record).get("control", {})
    return [str(control["kind"]), *map(str, control.get("also", []))] if "kind" in control else []


def control_titles(record: RunRecord) -> list[str]:
    """Return the titles of the columns of a drawn clip that show its control inputs."""
    kinds = control_kinds(record)
    return ["control"] if len(kinds) < 2 else [f"control ({kind})" for kind in kinds]


def frame_names(clip: Mapping[str, Any]) -> list[str]:
    """Return what the rows of a drawn clip's picture show, as transfer1.drawing chooses them."""
    return [f"frame {number}" for number in (0, clip["num_frames"] // 2, clip["num_frames"] - 1)]


def network_note(record: RunRecord) -> str:
    """Return HTML of a remark where the run's network is one of the demo's; empty where it is not."""
    size = str(recipe_of(record).get("network", {}).get("size", ""))
    if not size.startswith(DEMO_NETWORK):
        return ""
    return note(f"{record.run}: a tiny network ({size}); no picture is expected on real videos.")


def _sample_note(samples: Mapping[str, Any]) -> str:
    return (
        f"Held-out clips, drawn from the exported weights of step {samples['step']} in "
        f"{count_of(samples['num_steps'], 'sampler step')} with "
        f"guidance {samples['guidance']:g} and seed {samples['seed']}. Below each video: first, middle and last frame."
    )


def provenance_table(record: RunRecord) -> pd.DataFrame:
    """Return where the weights come from: hashes, versions, hardware, commit."""
    merged: dict[str, Any] = {
        "identity": record.manifest["identity"],
        "attempt": record.manifest["attempt"],
        "checkpoint": record.manifest["checkpoint"],
        "dataset": record.manifest["dataset"],
        "checkpoints": record.manifest["checkpoints"],
        "torch": record.manifest.get("torch"),
    }
    for key in ("git", "hardware", "packages", "verified", "files"):
        if key in record.provenance:
            merged[key] = record.provenance[key]
    for link in record.provenance.get("chain", []):
        merged[f"rule {link['rule']}, version {link['version']}"] = link["made"]
    rows = dict(_flatten(merged))
    return pd.DataFrame({"": rows})


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            rows.append((prefix + key, ", ".join(map(str, value))))
        else:
            rows.append((prefix + key, str(value)))
    return rows
