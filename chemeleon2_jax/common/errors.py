"""Errors that users of the package see and may catch."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found or read; says what, where and what to do."""


class RewardError(ValueError):
    """A reward cannot be used, or fails for every crystal; says which, why and what to do."""


class EnergyError(ValueError):
    """An energy model or a hull cannot be had, or the two do not fit; says what to do."""


class DatasetError(ValueError):
    """A data set is unknown, incomplete, corrupt or out of reach; the text says what to do."""


class SettingsError(ValueError):
    """Settings that do not fit the stage they are for; says which, and what there is."""


class NonFiniteError(FloatingPointError):
    """The loss, the gradient or the parameters are not finite.

    Attributes:
        step: the first step (counted from 1, as in the log) that was not finite.
        names: the metrics that were not.
    """

    def __init__(self, step: int, names: list[str], *, advice: str = "") -> None:
        self.step, self.names = step, names
        super().__init__(f"step {step}: {', '.join(names)} not finite{advice}")


class ConfigError(ValueError):
    """A config, or a flag that changes it, is wrong; the text names the key and what to do."""
