"""A user's own reward: a function of a list of Structures, by its import path."""

from __future__ import annotations

from typing import Any

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.common.json_text import parse_json
from chemeleon2_jax.rewards.component import Component, Context
from chemeleon2_jax.rewards.functions import FunctionOfStructures, load_function
from chemeleon2_jax.rewards.options import check_positive


def build(
    context: Context, *, function: str = "", kwargs: str = "", batch_size: int = 1
) -> Component:
    """Score crystals with a user's function.

    It is imported here, but not called: a user's function need not take an empty list.

    Args:
        context: workers and time limit.
        function: module:function
        kwargs: its keyword arguments as JSON
        batch_size: structures in a call; 0 is all of a rollout

    Raises:
        RewardError: no function, one that cannot be imported, or arguments that are no JSON.
    """
    if not function:
        raise RewardError("function is empty: name yours as module:function")
    load_function(function)
    check_positive(batch_size, "batch_size", or_zero=True)
    return FunctionOfStructures(
        function, read_json(kwargs, "kwargs"), batch_size=batch_size, timeout_s=context.timeout_s
    )


def read_json(text: str, key: str) -> dict[str, Any]:
    """Read keyword arguments from JSON: '{"target": 3}'; '' is none.

    Raises:
        RewardError: not a JSON object.
    """
    try:
        arguments = parse_json(text or "{}")
    except ValueError as error:
        raise RewardError(
            f'{key} {text!r:.200} are not JSON ({error}); write {{"target": 3}}'
        ) from error
    if not isinstance(arguments, dict):
        raise RewardError(f'{key} {text!r:.200} are no JSON object; write {{"target": 3}}')
    return arguments
