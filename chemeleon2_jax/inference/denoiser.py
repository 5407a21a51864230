"""A diffusion transformer as the denoise function that `diffusion` takes."""

from __future__ import annotations

import jax

from chemeleon2_jax.diffusion.gaussian import DenoiseFn
from chemeleon2_jax.diffusion.guidance import guided
from chemeleon2_jax.models.dit import DiT, split_output
from chemeleon2_jax.models.sizes import DiTSizes
from chemeleon2_jax.rows.rows import Rows


def denoiser(dit: DiT, sizes: DiTSizes, rows: Rows, *, cfg_scale: float = 1.0) -> DenoiseFn:
    """Return the denoise function of a model over rows; where the rows have conditions, with these
    and guided by `cfg_scale` (1 is no guidance).
    """

    def denoise(
        x: jax.Array,
        t: jax.Array,
        condition: jax.Array | None = None,
        *,
        estimate: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        output = dit(x, t, rows, condition=condition, estimate=estimate)
        return split_output(output, rows, sizes)

    if not rows.conditions:
        return denoise
    embedding = dit.embed(rows)
    assert dit.conditions is not None
    return guided(denoise, embedding, null=dit.conditions.null(), scale=cfg_scale)
