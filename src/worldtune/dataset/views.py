"""Clips of several cameras: which of them are one scene, and whether its views can be used together."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from worldtune.dataset.clips import clip_id, scene_key, view_of
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.reasons import refuse

Row = dict[str, Any]


def join_views(rows: Iterable[Row], config: DatasetConfig) -> None:
    """Set view and scene of each row; a scene is used if each of its views is there, usable and like the main one."""
    scenes: dict[str, dict[str, Row]] = defaultdict(dict)
    main = next(iter(config.views))
    for row in rows:
        row["view"], row["scene"] = view_of(row["source_key"], config.views), None
        # A clip outside of the views' folders carries that reason from its first stage on.
        if row["view"] is None:
            continue
        name = scene_key(row["source_key"], config.views)
        row["scene"] = clip_id(f"{main}/{name}", row["start_s"], row["end_s"])
        scenes[row["scene"]][row["view"]] = row
    for views in scenes.values():
        reason = _view_problem(views, config)
        for row in views.values():
            if reason:
                refuse(row, reason)


def _view_problem(views: Mapping[str, Row], config: DatasetConfig) -> str:
    """Say what keeps the views of a scene from being used together; empty where nothing does."""
    missing = [view for view in config.views if view not in views]
    if missing:
        return f"view missing: {', '.join(missing)}"
    unusable = [view for view, row in views.items() if row["status"] != "ok"]
    if unusable:
        return f"view unusable: {', '.join(sorted(unusable))}"
    facts = {(row["num_frames"], row["width"], row["height"], row["fps"]) for row in views.values()}
    if len(facts) > 1:
        listed = "; ".join(
            f"{frames} frames of {width}x{height} at {fps:g}" for frames, width, height, fps in sorted(facts)
        )
        return f"views differ: {listed}"
    return ""
