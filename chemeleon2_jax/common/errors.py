"""Errors that users of the package see and may catch.

A `UserError` can be mended by the user: its text says what happened, to what (file, row, key) and
what to do, and the command lines print it as one line. Any other error is a fault of the program
and shows its traceback.
"""


class UserError(Exception):
    """An error that the user can mend; base of all kinds below."""


class ConfigError(UserError, ValueError):
    """A flag, a config or one of its values cannot be used."""


class SettingsError(UserError, ValueError):
    """Settings of a run do not fit its stage."""


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


class HostError(UserError, RuntimeError):
    """The processes of a run cannot find each other, do not agree, or one of them has ended."""


class NonFiniteError(UserError, FloatingPointError):
    """The loss, the gradient or the parameters are not finite.

    Attributes:
        step: the first step (counted from 1, as in the log) with a value that is not finite.
        names: of the metrics that are not finite.
    """

    def __init__(self, step: int, names: list[str], *, advice: str = "") -> None:
        self.step, self.names = step, names
        super().__init__(f"step {step}: {', '.join(names)} not finite{advice}")
