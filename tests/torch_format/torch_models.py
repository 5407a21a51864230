"""The models of the original in a few lines of PyTorch: no padding, one crystal at a time.

Modules have the original's names, and are pickled into `hyper_parameters`, as there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

WIDTH, HEADS, FEEDFORWARD, LATENT = 24, 3, 40, 4
HIDDEN, DIT_HEADS, DEPTH = 20, 5, 2
Crystal = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # types (n,), coords (n, 3), cell (3, 3)


def index_embedding(count: int, width: int) -> torch.Tensor:
    k = torch.arange(width // 2)
    angle = torch.arange(count)[:, None] * math.pi / 2048 ** (2 * k / width)
    return torch.cat([torch.sin(angle), torch.cos(angle)], -1)


def transformer() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        WIDTH,
        HEADS,
        FEEDFORWARD,
        dropout=0.0,
        activation=nn.GELU(approximate="tanh"),
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerEncoder(
        layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
    ).train()  # not the fused path, whose GELU is another one


def embedder(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, WIDTH, bias=False), nn.SiLU(), nn.Linear(WIDTH, WIDTH))


class TransformerEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.atom_type_embedder = nn.Embedding(100, WIDTH)
        self.lattices_embedder, self.frac_coords_embedder = embedder(9), embedder(3)
        self.transformer = transformer()

    def forward(self, crystal: Crystal) -> torch.Tensor:
        types, coords, cell = crystal
        x = self.atom_type_embedder(types) + self.frac_coords_embedder(coords)
        x = x + self.lattices_embedder(cell.reshape(1, 9)) + index_embedding(len(types), WIDTH)
        return self.transformer(x[None])[0]


class TransformerDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = transformer()
        self.atom_types_head = nn.Linear(WIDTH, 100)
        self.frac_coords_head = nn.Linear(WIDTH, 3, bias=False)
        self.lattice_head = nn.Linear(WIDTH, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.transformer((x + index_embedding(len(x), WIDTH))[None])[0]


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = TransformerEncoder(), TransformerDecoder()
        self.quant_conv = nn.Linear(WIDTH, 2 * LATENT, bias=False)
        self.post_quant_conv = nn.Linear(LATENT, WIDTH, bias=False)


class DiTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-6, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(HIDDEN, DIT_HEADS, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(HIDDEN, 4 * HIDDEN), "fc2": nn.Linear(4 * HIDDEN, HIDDEN)}
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 6 * HIDDEN))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, -1)
        y = (self.norm(x) * (1 + scale1) + shift1)[None]
        x = x + gate1 * self.attn(y, y, y, need_weights=False)[0][0]
        y = self.mlp["fc1"](self.norm(x) * (1 + scale2) + shift2)
        return x + gate2 * self.mlp["fc2"](nn.functional.gelu(y, approximate="tanh"))


class TimestepEmbedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))

    def forward(self, t: int) -> torch.Tensor:
        angle = t * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        return self.mlp(torch.cat([torch.cos(angle), torch.sin(angle)])[None])


class FinalLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(HIDDEN, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 2 * HIDDEN))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, -1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class DiT(nn.Module):
    def __init__(self, *, learn_sigma: bool) -> None:
        super().__init__()
        self.num_heads, self.learn_sigma = DIT_HEADS, learn_sigma
        self.x_embedder = nn.Linear(LATENT, HIDDEN)
        self.t_embedder = TimestepEmbedder()
        self.blocks = nn.ModuleList(DiTBlock() for _ in range(DEPTH))
        self.final_layer = FinalLayer(2 * LATENT if learn_sigma else LATENT)

    def forward(self, x: torch.Tensor, t: int, condition: torch.Tensor | float) -> torch.Tensor:
        """Noise of one crystal, (n, L): the first n rows of the output read as (2n, L)."""
        h = self.x_embedder(x) + index_embedding(len(x), HIDDEN)
        c = self.t_embedder(t) + condition
        for block in self.blocks:
            h = block(h, c)
        return self.final_layer(h, c).reshape(-1, LATENT)[: len(x)]


class Encoder(nn.Module):
    """Encoder of one condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN)
        )
        self.null_embed = nn.Parameter(torch.randn(1, width))


class ConditionModule(nn.Module):
    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: Encoder(width) for name, width in widths.items()})
        self.proj = nn.Sequential(
            nn.Linear(len(widths) * HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN)
        )

    def forward(self, inputs: dict[str, torch.Tensor | None]) -> torch.Tensor:
        """Embedding of inputs (1, width) by name; None is dropped."""
        parts = [
            encoder.embedding(encoder.null_embed if inputs[name] is None else inputs[name])
            for name, encoder in self.encoders.items()
        ]
        return self.proj(torch.cat(parts, -1))


class LDM(nn.Module):
    """Denoiser, VAE and conditions, in the original's order."""

    def __init__(self, *, learn_sigma: bool, widths: dict[str, int] | None = None) -> None:
        super().__init__()
        self.register_buffer("latent_std", torch.tensor(1.7))
        self.denoiser = DiT(learn_sigma=learn_sigma)
        self.vae = VAE()
        if widths:
            self.condition_module = ConditionModule(widths)


def randomise(module: nn.Module) -> nn.Module:
    """Draw all parameters, so that none has its initial value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 1.0 / math.sqrt(parameter.shape[-1]))
    return module


def save(path: Path, module: nn.Module, **hyper_parameters: Any) -> None:
    """Write a checkpoint with the state of an optimiser."""
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.0)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save(
        {
            "state_dict": module.state_dict(),
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": hyper_parameters,
            "epoch": 1,
            "global_step": 2,
        },
        path,
    )
