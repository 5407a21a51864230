"""Options of a model in a checkpoint's `hyper_parameters`: plain values and pickled modules.

The file is not trusted: a value may be of any type, hold itself, or be missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.stubs import Name, Stub, numpy_number
from chemeleon2_jax.torch_format.tensors import Tensor

_MAX_DEPTH = 32
_MAX_VALUES = 200_000
_MAX_HEADS = 4096
_MAX_NODES = 1_000_000


def plain(value: Any) -> Any:
    """Return a value with omegaconf's and Lightning's containers as dicts and lists.

    Other objects stay.

    Raises:
        CheckpointError: containers nested too deeply or within themselves, or too many values.
    """
    return _plain(value, depth=0, budget=[_MAX_VALUES])


def _plain(value: Any, *, depth: int, budget: list[int]) -> Any:
    # Shared containers are copied at each place: a few of them, nested, stand for endless values.
    budget[0] -= 1
    if depth > _MAX_DEPTH or budget[0] < 0:
        raise CheckpointError("its hyper_parameters are too many to be the options of a model")

    def inner(item: Any) -> Any:
        return _plain(item, depth=depth + 1, budget=budget)

    if isinstance(value, Stub):
        if value.name.startswith("omegaconf."):
            return inner(value.get("_content", value.get("_val")))
        return inner(value.mapping) if value.mapping and not value.get("_modules") else value
    if isinstance(value, Mapping):
        return {key: inner(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    return value


def part_of(module: Any, name: str) -> Any:
    """Return a part of a pickled module or of plain options; None if there is none."""
    return module.get(name) if isinstance(module, Stub | Mapping) else None


def whole_number(value: Any, what: str, *, most: int) -> int:
    """Return a number of Python's, numpy's or a tensor's, from 1 to `most`.

    Raises:
        CheckpointError: it is none.
    """
    value = _number(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise CheckpointError(f"its {what} is {value!r:.60}; it must be a number from 1 to {most}")
    return value


def finite(value: Any, what: str) -> float:
    """Return a finite number of Python's, numpy's or a tensor's.

    Raises:
        CheckpointError: it is none.
    """
    value = _number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise CheckpointError(f"its {what} is {value!r:.60}; it must be a finite number")
    return float(value)


def _number(value: Any) -> Any:
    """The number in a tensor of one element or in a scalar of numpy's; anything else stays."""
    if isinstance(value, Tensor) and value.size == 1:
        return value.read().reshape(()).item()
    return numpy_number(value)


def stubs_within(root: Any) -> Iterator[Stub]:
    """Yield every pickled object within a value once, the nearest first."""
    queue, seen = deque([root]), {id(root)}
    while queue:
        node = queue.popleft()
        if isinstance(node, Stub):
            yield node
            children = [node.args, node.state, node.items, node.mapping]
        elif isinstance(node, Mapping):
            children = list(node.values())
        elif isinstance(node, list | tuple):
            children = list(node)
        else:
            continue
        for child in children:
            if id(child) not in seen and isinstance(child, Stub | Mapping | list | tuple):
                seen.add(id(child))
                queue.append(child)
        if len(seen) > _MAX_NODES:
            raise CheckpointError("its hyper_parameters hold too many objects to be a model's")


def number_of_heads(module: Any) -> int | None:
    """Return the attention heads of a pickled module, or of its plain options; None if unknown.

    Raises:
        CheckpointError: its layers have different numbers.
    """
    options = plain(module)
    if isinstance(options, Mapping):
        numbers = [options.get("nhead"), options.get("num_heads")]
    else:
        attentions = (s for s in stubs_within(module) if s.name.endswith("MultiheadAttention"))
        numbers = [stub.get("num_heads") for stub in attentions]
    heads = {whole_number(n, "number of heads", most=_MAX_HEADS) for n in numbers if n is not None}
    if len(heads) > 1:
        raise CheckpointError(f"its attention layers have different numbers of heads: {heads}")
    return next(iter(heads), None)


def check_transformer(module: Any, what: str) -> None:
    """Check that a pickled transformer is the function of `models.layers.Transformer`.

    Raises:
        CheckpointError: it has another activation, order of normalisation or index embedding.
    """
    options = plain(module)
    if isinstance(options, Mapping):
        known = {"activation": "gelu", "norm_first": True, "index_embedding": "sinusoidal"}
        for key, value in known.items():
            if options.get(key, value) != value:
                raise CheckpointError(
                    f"its {what} has {key} = {options[key]!r:.60}; only {value!r} is known"
                )
    for stub in stubs_within(module):
        if stub.name.endswith("TransformerEncoderLayer"):
            if stub.get("norm_first") is False:
                raise CheckpointError(f"its {what} normalises after attention; here it is before")
            _check_activation(stub.get("activation"), what)
        elif stub.name.endswith("LayerNorm"):
            eps = stub.get("eps")
            if isinstance(eps, float) and abs(eps - 1e-5) > 1e-12:
                raise CheckpointError(f"its {what} has LayerNorms with eps {eps}; here it is 1e-5")
    kind = module.get("index_embedding_type") if isinstance(module, Stub) else None
    if isinstance(kind, str) and kind != "sinusoidal":
        raise CheckpointError(f"its {what} has the index embedding {kind!r:.60}; not known")


def _check_activation(activation: Any, what: str) -> None:
    if not isinstance(activation, Name | Stub):
        return
    kind = activation.name.rpartition(".")[2]
    exact = isinstance(activation, Name) or activation.get("approximate") != "tanh"
    if kind != "GELU" or exact:
        raise CheckpointError(
            f"its {what} has the activation {kind}; here it is GELU in the tanh approximation"
        )


def statistics(stats: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation; None for both if one is missing."""
    mean, std = stats.get("mean"), stats.get("std")
    if mean is None or std is None:
        return None, None
    return finite(mean, "mean"), finite(std, "std")
