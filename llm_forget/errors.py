"""Errors that a user can cause: the command line shows their message alone, without a traceback."""


class UserError(ValueError):
    """Something given to llm-forget is wrong; the message says what was given, what is allowed and what to do."""


class RecipeError(UserError):
    """A recipe cannot be used: unknown key, wrong type, impossible combination, missing file."""


class DataError(UserError):
    """Data cannot be used: a bad line, an empty set, an answer without tokens, overlap between forget and retain."""


class LaunchError(UserError):
    """The processes were started in a way that would silently compute something else."""


class AdapterError(UserError):
    """An adapter, or the base it is for, cannot be read, combined, exported or merged without changing its meaning."""


class MissingExtraError(UserError):
    """An optional package is not installed; the message names the extra that brings it."""


class Interrupted(Exception):
    """The process was told to end before the run was complete; the message says what was saved and how to go on.

    Args:
        message: the message.
        exit_code: what a shell reports of a process that the signal ended; 143 for SIGTERM.
    """

    def __init__(self, message: str, exit_code: int = 143) -> None:
        super().__init__(message)
        self.exit_code = exit_code
