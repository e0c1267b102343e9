"""What rank 0 alone looks up or writes for all ranks, its failure shared: no rank waits for one that has left."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from worldtune.common.errors import WorldtuneError
from worldtune.training.errors import TemporaryError

Result = TypeVar("Result")


def on_main_rank(work: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """Return on all ranks what `work` returns on rank 0, where alone it is called. Collective.

    Args:
        work: returns something that can be pickled.
        group: whose first rank is rank 0; all ranks by default.

    Raises:
        WorldtuneError: what `work` raised, on all ranks; also a TemporaryError.
        TemporaryError: on the other ranks, where it is an OSError on rank 0.
    """
    said: list[tuple[Result | None, type[WorldtuneError] | None, str]] = [(None, None, "")]
    failure: WorldtuneError | OSError | None = None
    if dist.get_rank() == 0:
        try:
            said = [(work(), None, "")]
        except (WorldtuneError, OSError) as error:
            failure = error
            kind = TemporaryError if isinstance(error, TemporaryError | OSError) else WorldtuneError
            said = [(None, kind, str(error))]
    dist.broadcast_object_list(said, src=0, group=group)
    result, kind_of_failure, message = said[0]
    if failure is not None:
        raise failure
    if kind_of_failure is not None:
        raise kind_of_failure(message)
    return result  # type: ignore[return-value]
