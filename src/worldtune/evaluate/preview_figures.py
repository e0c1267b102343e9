"""What the run report shows of the previews that the training job drew: the newest one, and edge F1 over the steps."""

import html
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from worldtune.common.files import read_json
from worldtune.evaluate.figures import GREY, STYLE, file_url, note, palette
from worldtune.evaluate.report import RunRecord

PREVIEWS, SUMMARY = "previews", "previews.json"
"""Names in an attempt, as training.previews gives them; reading them there would load PyTorch."""
FEWEST_FOR_CURVES = 2


def has_edge_curve(record: RunRecord) -> bool:
    """Return whether edges were scored at enough steps for a curve."""
    return "edge_f1" in record.previews and record.previews["step"].nunique() >= FEWEST_FOR_CURVES


def plot_edge_f1(record: RunRecord) -> Figure:
    """Edge F1 over the steps, a line for each guidance; dashed: against another clip's edges."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 2.6))
        groups = list(record.previews.groupby("guidance"))
        for (guidance, rows), colour in zip(groups, palette(len(groups)), strict=True):
            means = rows.groupby("step").mean(numeric_only=True)
            axes.plot(
                means.index, means["edge_f1"], color=colour, marker="o", markersize=3, label=f"guidance {guidance:g}"
            )
            if "edge_f1_other" in means:
                axes.plot(means.index, means["edge_f1_other"], color=colour, linestyle="--", linewidth=1)
        axes.plot([], [], color=GREY, linestyle="--", linewidth=1, label="to another clip's edges")
        axes.set(title="Edge F1 of held-out previews", xlabel="step")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8.5)
    return figure


def preview_gallery(record: RunRecord) -> str:
    """Return HTML of the newest preview: each clip as a picture and a video, all files embedded."""
    folders = sorted(path.parent for path in (record.attempt_dir / PREVIEWS).glob(f"*/{SUMMARY}"))
    # The attempt may have gone on before max_iter was lowered.
    shown = [
        (folder, found)
        for folder in folders
        if (found := read_json(folder / SUMMARY))["step"] <= record.manifest["final_step"]
    ]
    if not shown:
        return note("The training job drew no preview.")
    folder, summary = shown[-1]
    parts = [
        f"<p>Held-out clips at step {summary['step']}, drawn from the weights of that step, not from a moving average, "
        f"in {summary['num_steps']} sampler steps.</p>"
    ]
    return "\n".join([*parts, *(_figure(folder, summary, clip) for clip in summary["clips"])])


def _figure(folder: Path, summary: dict[str, Any], clip: dict[str, Any]) -> str:
    drawn = [_score(clip["scores"].get(f"{guidance:g}", {})) for guidance in summary["guidances"]]
    scores = [*[""] * (len(summary["columns"]) - len(drawn)), *drawn]
    columns = "".join(
        f"<span>{html.escape(title)}{score}</span>" for title, score in zip(summary["columns"], scores, strict=True)
    )
    video, grid = file_url(folder / clip["video"], "video/mp4"), file_url(folder / clip["grid"], "image/png")
    shown = html.escape(f"first, middle and last frame of {', '.join(summary['columns'])}")
    return (
        f"<figure><figcaption><b>{html.escape(clip['clip_id'])}</b></figcaption><div class='columns'>{columns}</div>"
        f"<video src='{video}' controls loop muted autoplay playsinline></video>"
        f"<img src='{grid}' alt='{shown}'></figure>"
    )


def _score(scores: dict[str, float]) -> str:
    return f", edge F1 {scores['edge_f1']:.3f}" if "edge_f1" in scores else ""
