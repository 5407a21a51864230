"""The registry of encoders: sizes in configs and checkpoints, and the contract of networks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.crystals.arrays import NUM_ATOM_CLASSES
from chemeleon2_jax.models.encoders.registry import (
    ENCODERS,
    CSPNetSizes,
    TransformerSizes,
    read_encoder,
)
from chemeleon2_jax.models.sizes import DecoderSizes, VAESizes
from tests.examples import in_layout, random_crystals

# A block of a checkpoint of the first version.
BLOCK = {
    "name": "cspnet",
    "d_model": 16,
    "nhead": 2,
    "dim_feedforward": 32,
    "num_layers": 3,
    "num_freqs": 4,
    "layer_norm": False,
}


def test_sizes_of_a_checkpoint():
    sizes = read_encoder(BLOCK)
    assert sizes == CSPNetSizes(d_model=16, num_layers=3, num_freqs=4, layer_norm=False)
    transformer = read_encoder({**BLOCK, "name": "transformer"})
    assert transformer == TransformerSizes(d_model=16, nhead=2, dim_feedforward=32, num_layers=3)
    # Options of other encoders are written with their defaults.
    assert sizes.to_block().items() >= {**BLOCK, "nhead": 8, "dim_feedforward": 2048}.items()
    own = {"name": "transformer", "num_freqs": 10, "layer_norm": True}
    assert transformer.to_block().items() >= {**BLOCK, **own}.items()


@pytest.mark.parametrize("sizes", ENCODERS.values())
def test_sizes_survive_json(sizes):
    vae = VAESizes(4, sizes(d_model=32, num_layers=1), DecoderSizes(d_model=16), False)
    again = VAESizes.from_dict(json.loads(json.dumps(vae.to_dict())))
    assert again == vae
    assert hash(again) == hash(vae)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "gnn"}, r"encoder.name is 'gnn'; choose one of transformer, cspnet"),
        ({}, "encoder.name is None"),
        ({"name": "cspnet", "num_freq": 4}, "no encoder has the option 'num_freq'"),
    ],
)
def test_wrong_blocks(block, message):
    with pytest.raises(ValueError, match=message):
        read_encoder(block)


def test_a_shared_option_has_one_default():
    """The block of a config holds one value for all encoders."""
    defaults = {}
    for sizes in ENCODERS.values():
        for field in fields(sizes):
            assert defaults.setdefault(field.name, field.default) == field.default, field.name


@pytest.mark.parametrize("sizes", [s(d_model=16, num_layers=1) for s in ENCODERS.values()])
def test_every_encoder_keeps_the_contract(sizes):
    batch = in_layout(random_crystals(), "packed", edges=sizes.needs_edges)[0]
    encoder = sizes.build(rngs=nnx.Rngs(0), dtype=jnp.float32)
    features = encoder(batch.rows)
    assert features.shape == (batch.rows.position.size, sizes.d_model)
    assert np.isfinite(features).all()
    assert encoder.atom_types[...].shape[0] == NUM_ATOM_CLASSES


def test_the_registry_is_free_of_jax():
    program = (
        "import sys, chemeleon2_jax.models.encoders.registry, chemeleon2_jax.models.sizes\n"
        "assert not {'jax', 'flax', 'pymatgen'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
