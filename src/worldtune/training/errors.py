"""Failures that a retry may mend."""

from worldtune.common.errors import WorldtuneError


class TemporaryError(WorldtuneError):
    """A failure that may be mended without changing recipe, inputs or code, such as a full disk; a retry is welcome."""
