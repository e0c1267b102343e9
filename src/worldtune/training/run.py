"""A training job around the loop: processes, device, attempt, lease, records, manifest."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, write_json
from worldtune.common.script import record_error
from worldtune.parallel.mesh import Mesh, build_mesh
from worldtune.recipe.schema import Recipe
from worldtune.training.attempt import (
    Attempt,
    fatal_recorded,
    record_start,
    refuse_fatal,
    set_fatal_aside,
    write_manifest,
)
from worldtune.training.inputs import Inputs, find_inputs
from worldtune.training.lease import POLL_S, Lease
from worldtune.training.manifest import MANIFEST
from worldtune.training.metrics import NullTracker, Tracker, WandbTracker
from worldtune.training.preflight import PREFLIGHT, Preflight
from worldtune.training.signals import EXIT_STOPPED, StopRequest
from worldtune.training.tables import last_steps, write_tables
from worldtune.training.task import Task
from worldtune.training.trainer import VERSION, train
from worldtune.training.watchdog import set_collective_timeouts, watched
from worldtune.training.whereabouts import mark

ANNOUNCE_S = 60.0
logger = logging.getLogger(__name__)

BuildTask = Callable[[Recipe, Inputs, Mesh, torch.device], Task]
"""Makes a family's task on a mesh; collective over all ranks."""


def run_training(
    recipe: Recipe,
    run_folder: Path,
    build_task: BuildTask,
    *,
    has_overrides: bool,
    manifest: Path | None,
    preflight_only: bool,
    datasets: Path,
    checkpoints: Path,
) -> int:
    """Train a recipe in this process, one of those that torchrun started; returns the process's exit code.

    Args:
        recipe: the resolved recipe.
        run_folder: `results/<run>`; its name is the run's.
        build_task: makes the family's task.
        has_overrides: whether the recipe differs from its file; results/<run>/manifest.json is then left alone.
        manifest: where the manifest goes besides the attempt; None takes results/<run>/manifest.json.
        preflight_only: end before the first step, and put what was measured beside the run's manifest.
        datasets: folder of all datasets.
        checkpoints: folder of all checkpoints.

    Returns:
        0 after the last step, EXIT_STOPPED (75) when it was asked to stop before.

    Raises:
        WorldtuneError: see `find_inputs`, `refuse_fatal`, `train`.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        logging.getLogger().setLevel(logging.WARNING)
    _check_world_size(recipe)
    inputs = find_inputs(recipe, datasets=datasets, checkpoints=checkpoints)
    attempt = Attempt(
        run=run_folder.name,
        run_folder=run_folder,
        identity=inputs.identity(recipe, VERSION),
        recipe=recipe,
        inputs=inputs,
    )
    if manifest is None and not has_overrides:
        manifest = run_folder / MANIFEST
    stop = StopRequest(attempt.folder)
    device = _device(recipe)
    parallel = recipe.parallel
    mesh = build_mesh(device.type, data=parallel.data, context=parallel.context, tensor=parallel.tensor)
    hang_seconds = recipe.health.hang_seconds
    set_collective_timeouts(hang_seconds)
    with watched(attempt.folder, hang_seconds):
        exit_code = _run_under_lease(attempt, build_task, mesh, device, stop, manifest, preflight_only)
    # Not after an error: the other ranks are then in a collective that this one will never join; torchrun ends them.
    dist.destroy_process_group()
    return exit_code


def _run_under_lease(
    attempt: Attempt,
    build_task: BuildTask,
    mesh: Mesh,
    device: torch.device,
    stop: StopRequest,
    manifest: Path | None,
    preflight_only: bool,
) -> int:
    attempt.folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(attempt.folder) if dist.get_rank() == 0 else None
    try:
        if not _acquire(lease, attempt, stop):
            return EXIT_STOPPED
        stopped = False
        if preflight_only or not _finished(attempt):
            refuse_fatal(attempt)
            with fatal_recorded(attempt):
                stopped = _train(attempt, build_task, mesh, device, stop, lease, preflight_only)
        if lease is not None:
            lease.check()
            write_tables(attempt.folder)
        if stopped:
            return EXIT_STOPPED
        if lease is not None:
            mark("writing the manifest")
            if not preflight_only:
                write_manifest(attempt, manifest)
            elif manifest is not None:
                write_json(manifest.with_name(PREFLIGHT), read_json(attempt.folder / PREFLIGHT))
        dist.barrier()
        return 0
    finally:
        if lease is not None:
            lease.release()


def _train(
    attempt: Attempt,
    build_task: BuildTask,
    mesh: Mesh,
    device: torch.device,
    stop: StopRequest,
    lease: Lease | None,
    preflight_only: bool,
) -> bool:
    """Train on all ranks, or measure only what comes before; returns whether it was stopped."""
    recipe = attempt.recipe
    preflight = Preflight(
        recipe,
        attempt.folder,
        circumstances=attempt.circumstances() if lease is not None else "",
        device=device,
        lease=lease,
        only=preflight_only,
    )
    tracker: Tracker = NullTracker()
    if lease is not None:
        set_fatal_aside(attempt)
        if not preflight_only:
            record_start(attempt, device=device, world_size=recipe.world_size)
            tracker = _tracker(attempt)
    try:
        mark("building the model")
        task = build_task(recipe, attempt.inputs, mesh, device)
        # It makes process groups too.
        set_collective_timeouts(recipe.health.hang_seconds)
        result = train(
            recipe,
            task,
            attempt.folder,
            mesh=mesh,
            device=device,
            stop=stop,
            lease=lease,
            tracker=tracker,
            about=attempt.belongs_to(),
            preflight=preflight,
        )
    finally:
        tracker.finish()
    if result.stopped is not None:
        said = f"stopped after step {result.step} of {recipe.training.max_iter}: {result.stopped}"
        logger.warning("%s", said)
        record_error(f"{said}. It is saved; the same command goes on from there.")
        return True
    if preflight_only:
        return False
    logger.info("trained %d steps; step %d is the last", result.new_steps, result.step)
    return False


def _finished(attempt: Attempt) -> bool:
    found = [False]
    if dist.get_rank() == 0:
        found = [attempt.finished()]
        if found[0]:
            logger.info("%s is at step %d; nothing to train", attempt.folder, attempt.recipe.training.max_iter)
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _acquire(lease: Lease | None, attempt: Attempt, stop: StopRequest) -> bool:
    """Wait on all ranks until rank 0 has the lease; returns False if a rank was asked to stop before.

    The ranks meet every few seconds, since one long wait in a collective would end in its timeout.
    """
    announced = -ANNOUNCE_S
    while True:
        mark("waiting for the lease")
        reasons: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, stop.reason())
        if any(reasons):
            said = f"not starting: {next(reason for reason in reasons if reason)}"
            logger.warning("%s", said)
            record_error(said)
            return False
        holder = [lease.try_acquire() if lease is not None else None]
        dist.broadcast_object_list(holder, src=0)
        if holder[0] is None:
            return True
        if time.monotonic() - announced >= ANNOUNCE_S:
            announced = time.monotonic()
            logger.info("waiting: %s holds %s", holder[0], attempt.folder)
        time.sleep(POLL_S)


def _tracker(attempt: Attempt) -> Tracker:
    logging_config = attempt.recipe.logging
    if logging_config.wandb == "disabled":
        return NullTracker()
    return WandbTracker(
        mode=logging_config.wandb,
        project=logging_config.wandb_project,
        name=attempt.run,
        identity=attempt.identity,
        folder=attempt.folder,
        config=attempt.recipe.model_dump(mode="json"),
        recorded=last_steps(attempt.folder),
    )


def _device(recipe: Recipe) -> torch.device:
    wanted = recipe.training.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if index >= count:
        raise WorldtuneError(
            f"process {index} of this node has no GPU: {count} are visible. Start at most one process a GPU "
            "(--processes-per-node), or set training.device = cpu."
        )
    return torch.device("cuda", index)


def _check_world_size(recipe: Recipe) -> None:
    found = int(os.environ.get("WORLD_SIZE", "1"))
    if found != recipe.world_size:
        parallel = recipe.parallel
        raise WorldtuneError(
            f"the recipe needs {recipe.world_size} processes (parallel.tensor = {parallel.tensor} x parallel.context = "
            f"{parallel.context} x parallel.data = {parallel.data}), but {found} were started. Use torchrun "
            f"--nproc_per_node={recipe.world_size}, or change the degrees (-- parallel.tensor=... parallel.data=...)."
        )
