"""Small checkpoints in the layout of the PyTorch original, with random numbers.

Names and shapes are written out here, not taken from the package: what converts them is tested
against them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chemeleon2_jax.torch_format.torch_writer import write_torch_file

WIDTH, FEEDFORWARD, LATENT, HIDDEN, FREQUENCIES = 16, 24, 4, 12, 3


@dataclass
class State:
    """Builds a state_dict."""

    rng: np.random.Generator
    tensors: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict)

    def add(self, name: str, *shape: int) -> None:
        self.tensors[name] = (0.3 * self.rng.normal(size=shape)).astype(np.float32)

    def linear(self, name: str, num_in: int, num_out: int, *, bias: bool = True) -> None:
        self.add(f"{name}.weight", num_out, num_in)
        if bias:
            self.add(f"{name}.bias", num_out)

    def norm(self, name: str, width: int) -> None:
        self.add(f"{name}.weight", width)
        self.add(f"{name}.bias", width)

    def attention(self, name: str, width: int) -> None:
        self.add(f"{name}.in_proj_weight", 3 * width, width)
        self.add(f"{name}.in_proj_bias", 3 * width)
        self.linear(f"{name}.out_proj", width, width)

    def transformer(self, name: str, *, layers: int = 2) -> None:
        for i in range(layers):
            layer = f"{name}.layers.{i}"
            self.attention(f"{layer}.self_attn", WIDTH)
            self.linear(f"{layer}.linear1", WIDTH, FEEDFORWARD)
            self.linear(f"{layer}.linear2", FEEDFORWARD, WIDTH)
            self.norm(f"{layer}.norm1", WIDTH)
            self.norm(f"{layer}.norm2", WIDTH)
        self.norm(f"{name}.norm", WIDTH)

    def vae(
        self,
        prefix: str = "",
        *,
        cspnet: bool = False,
        norm: bool = True,
        types: bool = True,
        fa: bool = False,
    ) -> None:
        if cspnet:
            self._cspnet(f"{prefix}encoder", norm=norm)
        else:
            self.add(f"{prefix}encoder.atom_type_embedder.weight", 100, WIDTH)
            for name, width in (("lattices", 9), ("frac_coords", 3)):
                embedder = f"{prefix}encoder.{name}_embedder"
                self.linear(f"{embedder}.0", width, WIDTH, bias=False)
                self.linear(f"{embedder}.2", WIDTH, WIDTH)
            self.transformer(f"{prefix}encoder.transformer")
        self.transformer(f"{prefix}decoder.transformer", layers=3)
        if types:
            self.linear(f"{prefix}decoder.atom_types_head", WIDTH, 100)
        self.linear(f"{prefix}decoder.frac_coords_head", WIDTH, 3, bias=False)
        self.linear(f"{prefix}decoder.lattice_head", WIDTH, 6, bias=False)
        self.linear(f"{prefix}quant_conv", WIDTH, 2 * LATENT, bias=False)
        self.linear(f"{prefix}post_quant_conv", LATENT, WIDTH, bias=False)
        if fa:
            self.linear(f"{prefix}proj", LATENT, 256)

    def _cspnet(self, name: str, *, norm: bool) -> None:
        self.add(f"{name}.node_embedding.weight", 100, WIDTH)
        for i in range(2):
            layer = f"{name}.csp_layer_{i}"
            self.linear(f"{layer}.edge_mlp.0", 2 * WIDTH + 9 + 6 * FREQUENCIES, WIDTH)
            self.linear(f"{layer}.edge_mlp.2", WIDTH, WIDTH)
            self.linear(f"{layer}.node_mlp.0", 2 * WIDTH, WIDTH)
            self.linear(f"{layer}.node_mlp.2", WIDTH, WIDTH)
            if norm:
                self.norm(f"{layer}.layer_norm", WIDTH)
        if norm:
            self.norm(f"{name}.final_layer_norm", WIDTH)
        self.linear(f"{name}.fc_out", WIDTH, WIDTH)

    def denoiser(self, *, learn_sigma: bool = True, lora: bool = False) -> None:
        name = "denoiser.base_model.model" if lora else "denoiser"
        self.linear(f"{name}.x_embedder", LATENT, HIDDEN)
        self.linear(f"{name}.t_embedder.mlp.0", 256, HIDDEN)
        self.linear(f"{name}.t_embedder.mlp.2", HIDDEN, HIDDEN)
        for i in range(2):
            block = f"{name}.blocks.{i}"
            self.attention(f"{block}.attn", HIDDEN)
            for layer, num_in, num_out in (
                ("mlp.fc1", HIDDEN, 2 * HIDDEN),
                ("mlp.fc2", 2 * HIDDEN, HIDDEN),
            ):
                if lora:
                    self.linear(f"{block}.{layer}.base_layer", num_in, num_out)
                    self.add(f"{block}.{layer}.lora_A.default.weight", 2, num_in)
                    self.add(f"{block}.{layer}.lora_B.default.weight", num_out, 2)
                else:
                    self.linear(f"{block}.{layer}", num_in, num_out)
            self.linear(f"{block}.adaLN_modulation.1", HIDDEN, 6 * HIDDEN)
        out = 2 * LATENT if learn_sigma else LATENT
        self.linear(f"{name}.final_layer.linear", HIDDEN, out)
        self.linear(f"{name}.final_layer.adaLN_modulation.1", HIDDEN, 2 * HIDDEN)

    def conditions(self) -> None:
        widths = {"composition": 100, "elements": 100, "dft_band_gap": 1, "space_group": 7}
        for name, width in widths.items():
            encoder = f"condition_module.encoders.{name}"
            self.add(f"{encoder}.null_embed", 1, width)
            self.linear(f"{encoder}.embedding.0", width, HIDDEN)
            self.linear(f"{encoder}.embedding.2", HIDDEN, HIDDEN)
        self.linear("condition_module.proj.0", len(widths) * HIDDEN, HIDDEN)
        self.linear("condition_module.proj.2", HIDDEN, HIDDEN)


CONDITIONS = {
    "condition_type": {
        "composition": "composition",
        "elements": "chemical_system",
        "dft_band_gap": "float",
        "space_group": "categorical",
    },
    "hidden_dim": HIDDEN,
    "drop_prob": 0.2,
    "stats": {"dft_band_gap": {"mean": 1.25, "std": 0.5}},
    "num_classes": 7,
}
LORA = {"r": 2, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["mlp.fc1", "mlp.fc2"]}
VAE_OPTIONS = {"encoder": {"nhead": 2}, "decoder": {"nhead": 4}}
TARGETS = {"energy": {"mean": -1.0, "std": 2.0}, "gap": {}}


def vae_content(**options: bool) -> dict[str, Any]:
    """Return a VAE; options are those of `State.vae`."""
    state = State(np.random.default_rng(1))
    state.vae(**options)
    return {"state_dict": state.tensors, "hyper_parameters": dict(VAE_OPTIONS), "epoch": 3}


def ldm_content(
    *, conditional: bool = False, lora: bool = False, with_vae: bool = True, **options: bool
) -> dict[str, Any]:
    """Return an LDM; options are those of `State.denoiser`."""
    state = State(np.random.default_rng(2))
    state.tensors["latent_std"] = np.array(0.7, np.float32)
    state.denoiser(lora=lora, **options)
    if with_vae:
        state.vae("vae.")
    if conditional:
        state.conditions()
    hyper = {
        "denoiser": {"num_heads": 3},
        "diffusion_configs": {"diffusion_steps": 1000, "predict_xstart": False},
        "condition_module": CONDITIONS if conditional else None,
        "lora_configs": LORA if lora else None,
        "vae": VAE_OPTIONS,
    }
    return {"state_dict": state.tensors, "hyper_parameters": hyper, "global_step": 12}


def with_averages(content: dict[str, Any]) -> dict[str, Any]:
    """Add moving averages: every parameter plus one."""
    shadow = [a + 1.0 for name, a in content["state_dict"].items() if name != "latent_std"]
    return {**content, "ema_state": {"decay": 0.9, "num_updates": 5, "shadow_params": shadow}}


def predictor_content(*, features: bool = True) -> dict[str, Any]:
    """Return a predictor of two targets, one of them not standardised."""
    state = State(np.random.default_rng(3))
    state.vae("vae.")
    width = LATENT + WIDTH if features else LATENT
    state.linear("proj.0", width, width // 4)
    state.norm("proj.1", width // 4)
    state.linear("proj.4", width // 4, width // 2)
    state.norm("proj.5", width // 2)
    state.linear("proj.8", width // 2, len(TARGETS))
    hyper = {"vae": VAE_OPTIONS, "target_conditions": TARGETS, "reduce": "sum"}
    return {"state_dict": state.tensors, "hyper_parameters": hyper}


CONTENTS = {
    "vae": vae_content,
    "vae_csp": lambda: vae_content(types=False),
    "vae_cspnet": lambda: vae_content(cspnet=True),
    "vae_cspnet_without_norms": lambda: vae_content(cspnet=True, norm=False),
    "vae_fa": lambda: vae_content(fa=True),
    "ldm": ldm_content,
    "ldm_fixed_sigma": lambda: ldm_content(learn_sigma=False),
    "ldm_conditional": lambda: ldm_content(conditional=True),
    "ldm_lora": lambda: ldm_content(lora=True),
    "predictor": predictor_content,
    "predictor_of_latents": lambda: predictor_content(features=False),
}


def write(folder: Path, name: str) -> Path:
    """Write one of CONTENTS."""
    path = folder / f"{name}.ckpt"
    write_torch_file(path, CONTENTS[name]())
    return path
