"""The error for energy models and hulls that cannot be had or do not fit together."""


class EnergyError(ValueError):
    """An energy model or a hull cannot be had, or the two do not fit; says what to do."""
