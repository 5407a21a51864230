"""Options that only a checkpoint's `hyper_parameters` tell: plain values, and what pickled modules
say of themselves.

Nothing here trusts the file: what is pickled may be of any type, refer to itself, or be missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from chemeleon2_jax.convert.stubs import Stub
from chemeleon2_jax.errors import CheckpointError

_MAX_DEPTH = 32
_MAX_NODES = 1_000_000


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value without omegaconf's and Lightning's containers; what is no plain value stays.

    Raises:
        CheckpointError: containers nested too deeply, or within themselves.
    """
    if depth > _MAX_DEPTH:
        raise CheckpointError("its hyper_parameters are nested too deeply to be options of a model")
    if isinstance(value, Stub):
        if value.name.startswith("omegaconf."):
            content = value.get("_content", value.get("_val"))
            return plain(content, depth + 1)
        if value.mapping and not value.get("_modules"):
            return plain(value.mapping, depth + 1)
        return value
    if isinstance(value, Mapping):
        return {key: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth + 1) for item in value]
    return value


def stubs_within(root: Any) -> Iterator[Stub]:
    """Yield every pickled object within a value, the nearest first; each once."""
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
    """Return the number of attention heads of a pickled module, or of its plain options; None where
    they are not told.

    Raises:
        CheckpointError: its layers do not agree.
    """
    options = plain(module)
    if isinstance(options, Mapping):
        found = {options.get("nhead"), options.get("num_heads")}
    else:
        found = {
            stub.get("num_heads")
            for stub in stubs_within(module)
            if stub.name.endswith("MultiheadAttention")
        }
    heads = {n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0}
    if len(heads) > 1:
        raise CheckpointError(f"its attention layers have different numbers of heads: {heads}")
    return next(iter(heads), None)


def check_transformer(module: Any, what: str) -> None:
    """Check that a pickled transformer computes what `models.layers.Transformer` does.

    Raises:
        CheckpointError: another activation, order of normalisation or index embedding.
    """
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
        raise CheckpointError(f"its {what} has the index embedding {kind!r}, which is not known")


def _check_activation(activation: Any, what: str) -> None:
    if not isinstance(activation, Stub):
        return
    kind = activation.name.rpartition(".")[2]
    if kind != "GELU" or activation.get("approximate") != "tanh":
        raise CheckpointError(
            f"its {what} has the activation {kind}; here it is GELU in the tanh approximation"
        )


def statistics(stats: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation; neither counts without the other."""
    mean, std = stats.get("mean"), stats.get("std")
    return (None, None) if mean is None or std is None else (float(mean), float(std))
