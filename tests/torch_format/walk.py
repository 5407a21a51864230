"""Uses the content of a file as a converter does: walks, looks up attributes, reads tensors."""

from __future__ import annotations

from typing import Any

from chemeleon2_jax.common.stubs import Stub
from chemeleon2_jax.torch_format.tensors import Tensor


def visit(content: Any) -> None:
    """Walk through the content of a file, which may hold itself."""
    stack, seen = [content], set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            value.read()
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
        elif isinstance(value, Stub):
            value.get("num_heads")
            stack.extend((value.args, value.kwargs, value.state, value.items, value.mapping))
