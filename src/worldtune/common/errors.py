"""The error that a person can act on."""


class WorldtuneError(RuntimeError):
    """Bad input or a state that the user can mend.

    The message names the file or key, says what was expected and what to do. Scripts print it without a traceback and
    exit with status 1.
    """
