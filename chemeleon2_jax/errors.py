"""Errors that users of the package see and may catch."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found or read; says what, where and what to do."""


class RewardError(ValueError):
    """A reward cannot be used, or fails for every crystal; says which, why and what to do."""
