"""Low-rank adapters of linear layers (LoRA, Hu et al. 2022): y = x W + b + (alpha / rank) x A B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chemeleon2_jax.models.layers import torch_linear_init, zeros_init
from chemeleon2_jax.models.sizes import LoRASizes


class LoRALinear(nnx.Linear):
    """A linear layer with an adapter: lora_a (num_in, rank), lora_b (rank, num_out).

    It shares the parameters of the layer that it replaces. B starts at zero, so that the output is
    unchanged before training.
    """

    def __init__(self, base: nnx.Linear, *, rank: int, scale: float, rngs: nnx.Rngs) -> None:
        super().__init__(
            base.in_features,
            base.out_features,
            use_bias=base.use_bias,
            kernel_init=zeros_init,
            dtype=base.dtype,
            rngs=rngs,
        )
        self.kernel, self.bias = base.kernel, base.bias
        first = torch_linear_init(rngs.params(), (base.in_features, rank), jnp.float32)
        self.lora_a = nnx.LoRAParam(first)
        self.lora_b = nnx.LoRAParam(jnp.zeros((rank, base.out_features), jnp.float32))
        self.scale = scale

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        """(N, num_in) -> (N, num_out)."""
        y = super().__call__(x, out_sharding)
        a, b = self.lora_a[...].astype(y.dtype), self.lora_b[...].astype(y.dtype)
        return y + self.scale * ((x.astype(y.dtype) @ a) @ b)


def add_lora(module: nnx.Module, sizes: LoRASizes, *, rngs: nnx.Rngs) -> None:
    """Add adapters to the linear layers of a module that the targets name, in place.

    Raises:
        ValueError: a target names no linear layer.
    """
    linear_layers = {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_modules(module)
        if isinstance(node, nnx.Linear)
    }
    chosen = {name for name in linear_layers if sizes.applies_to(name)}
    for target in sizes.targets:
        if not any(_matches(name, target) for name in linear_layers):
            raise ValueError(
                f"LoRA target {target!r} names no linear layer; there are "
                f"{', '.join(sorted(linear_layers))}"
            )
    for name in sorted(chosen):
        *parents, last = name.split(".")
        node: Any = module
        for part in parents:
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        adapted = LoRALinear(linear_layers[name], rank=sizes.rank, scale=sizes.scale, rngs=rngs)
        setattr(node, last, adapted)


def _matches(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def merge(params: Any, sizes: LoRASizes) -> Any:
    """Return parameters without adapters, their products added to the kernels (in float64).

    Args:
        params: nested mappings (an nnx.State or dicts), with arrays or nnx variables as leaves.
        sizes: of the adapters.
    """
    merged = _merged(params, sizes.scale)
    return nnx.State(merged) if isinstance(params, nnx.State) else merged


def _merged(params: Any, scale: float) -> Any:
    if not isinstance(params, Mapping):
        return params
    rest = {name: _merged(node, scale) for name, node in params.items()}
    if "lora_a" in rest:
        a, b = (np.asarray(rest.pop(name)[...], np.float64) for name in ("lora_a", "lora_b"))
        kernel = rest["kernel"]
        array = np.asarray(kernel[...])
        new = (array + scale * (a @ b)).astype(array.dtype)
        rest["kernel"] = kernel.replace(new) if isinstance(kernel, nnx.Variable) else new
    return rest


def only_adapters(params: Any) -> Any:
    """Stop the gradients of all parameters except adapters and conditions."""

    def stop_others(path: Any, leaf: Any) -> Any:
        names = {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
        return leaf if names & {"lora_a", "lora_b", "conditions"} else jax.lax.stop_gradient(leaf)

    return jax.tree_util.tree_map_with_path(stop_others, params)
