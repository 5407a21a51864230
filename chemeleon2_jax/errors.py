"""Errors that users of the package see and may catch."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found or read; says what, where and what to do."""
