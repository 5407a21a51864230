"""Errors that users of the package see and may catch.

A `UserError` is one that the user can mend: its text says what happened, to what (file, row, key)
and what to do, and the command lines print it as one line. Everything else is a fault of the
program and shows its traceback.
"""


class UserError(Exception):
    """What a user can mend; the base of all kinds below."""


class ConfigError(UserError, ValueError):
    """A flag, a config or one of its values cannot be used."""


class SettingsError(UserError, ValueError):
    """Settings of a run do not fit the stage that they are for."""


class DatasetError(UserError, ValueError):
    """A data set is unknown, incomplete, corrupt or out of reach."""


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be written, found or read."""


class PickleError(UserError, ValueError):
    """A pickle is damaged, or built to do harm."""


class RewardError(UserError, ValueError):
    """A reward cannot be used, or fails for every crystal."""


class EnergyError(UserError, ValueError):
    """An energy model or a hull cannot be had, or the two do not fit."""


class NonFiniteError(UserError, FloatingPointError):
    """The loss, the gradient or the parameters are not finite.

    Attributes:
        step: the first step (counted from 1, as in the log) that was not finite.
        names: the metrics that were not.
    """

    def __init__(self, step: int, names: list[str], *, advice: str = "") -> None:
        self.step, self.names = step, names
        super().__init__(f"step {step}: {', '.join(names)} not finite{advice}")
