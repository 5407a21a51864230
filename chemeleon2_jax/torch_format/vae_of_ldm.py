"""The VAE of an LDM: most files hold its weights, none its number of attention heads.

A wrong number would go unnoticed: such a VAE still half reconstructs crystals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.encoders.registry import TransformerSizes
from chemeleon2_jax.models.sizes import VAESizes
from chemeleon2_jax.models.vae import VAE
from chemeleon2_jax.torch_format.content import own_entry
from chemeleon2_jax.torch_format.hyperparameters import part_of
from chemeleon2_jax.torch_format.model import Converted, OpenModel, Options, Report
from chemeleon2_jax.torch_format.names import vae_entries
from chemeleon2_jax.torch_format.reading import TreeReader
from chemeleon2_jax.torch_format.sizes import (
    PUBLISHED_HEADS,
    PUBLISHED_WIDTH,
    Heads,
    HeadsUnknownError,
    vae_sizes,
)
from chemeleon2_jax.torch_format.tensors import DTYPES
from chemeleon2_jax.torch_format.torch_file import TorchFile
from chemeleon2_jax.training.plain_trees import flat_names

_ADVICE = (
    "give the checkpoint of the VAE that it was trained with (--vae, or load_model(..., vae=...))"
)

_MOST_BESIDE = 32  # files that are opened

ConvertFn = Callable[[Path, Options], Converted]


def vae_of_ldm(
    file: TorchFile,
    reader: TreeReader,
    hyper: Mapping[str, Any],
    *,
    options: Options,
    convert: ConvertFn,
) -> tuple[VAESizes, dict[str, Any]]:
    """Return sizes and parameters of the VAE of an LDM.

    Args:
        file: open.
        reader: of its tensors.
        hyper: its hyper_parameters.
        options: how to read it; `options.vae` precedes a VAE beside the file.
        convert: reads another file.

    Raises:
        CheckpointError: there is no VAE, it is broken, or its number of heads is unknown.
    """
    given, report = options.vae, reader.report
    if not any(name.startswith("vae.") for name in reader.state.tensors):
        vae = given or next(_beside(file, report, hyper, options=options, convert=convert), None)
        if vae is None:
            raise CheckpointError(f"it does not hold its VAE; {_ADVICE}")
        if given is None:
            report.assumptions.append(
                f"it does not hold its VAE: that of {vae.path.name}, which it names, is taken"
            )
        return vae.meta.vae, vae.restore(vae.meta.vae_item)
    state = reader.state.below("vae.")
    module = own_entry(file.content).get("vae", hyper.get("vae"))
    heads_are_known = True
    try:
        sizes = vae_sizes(
            state, part_of(module, "encoder"), part_of(module, "decoder"), heads=options.vae_heads
        )
    except HeadsUnknownError:
        sizes, heads_are_known = vae_sizes(state, heads=(1, 1)), False
    tree = reader.read(vae_entries(sizes, "vae."), VAE, sizes)
    difference = _first_difference(tree, given, reader) if given else ""
    if given and difference:
        raise CheckpointError(
            f"{given.path} is not the VAE that it was trained with: the weights differ, first in "
            f"{difference}"
        )
    if heads_are_known:
        return sizes, tree
    # A VAE as wide as the published ones is not looked for under other names.
    anywhere = sizes.decoder.d_model != PUBLISHED_WIDTH
    others: Iterable[OpenModel] = (
        [given]
        if given
        else _beside(file, report, hyper, options=options, convert=convert, anywhere=anywhere)
    )
    return with_heads(sizes, _heads_for(sizes, tree, others, reader)), tree


def _heads_for(
    sizes: VAESizes, tree: Mapping[str, Any], others: Iterable[OpenModel], reader: TreeReader
) -> Heads:
    """Heads of the same VAE in another file, or else of the published ones."""
    for other in others:
        if not _first_difference(tree, other, reader):
            vae = other.meta.vae
            reader.report.notes.append(
                f"{other.path.name} tells the heads of its VAE: {vae.decoder.nhead}"
            )
            return getattr(vae.encoder, "nhead", vae.decoder.nhead), vae.decoder.nhead
    return published_heads(sizes, reader.report, advice=_ADVICE)


def published_heads(sizes: VAESizes, report: Report, *, advice: str) -> Heads:
    """Return the heads of the published VAEs, for a VAE of their width.

    Raises:
        CheckpointError: it has another width.
    """
    if sizes.decoder.d_model != PUBLISHED_WIDTH:
        raise CheckpointError(f"{HeadsUnknownError()}; {advice}")
    report.assumptions.append(
        "it does not tell the heads of its VAE, which is as wide as the published ones: their "
        f"{PUBLISHED_HEADS} are taken"
    )
    return PUBLISHED_HEADS, PUBLISHED_HEADS


def with_heads(sizes: VAESizes, heads: Heads) -> VAESizes:
    """Return the same sizes with other numbers of attention heads."""
    encoder, decoder = sizes.encoder, replace(sizes.decoder, nhead=heads[1])
    if isinstance(encoder, TransformerSizes):
        encoder = replace(encoder, nhead=heads[0])
    return replace(sizes, encoder=encoder, decoder=decoder)


def _beside(
    file: TorchFile,
    report: Report,
    hyper: Mapping[str, Any],
    *,
    options: Options,
    convert: ConvertFn,
    anywhere: bool = False,
) -> Iterator[Converted]:
    """Yield the VAE that the file names, where it lies beside the file; with `anywhere`, then every
    other VAE there.
    """
    if not options.look_beside:
        return
    vae_path = hyper.get("vae_ckpt_path")
    named = PureWindowsPath(vae_path).name if isinstance(vae_path, str) else ""  # of either system
    folder = file.path.parent
    paths = [folder / named] if named else []
    if anywhere:
        paths += [p for p in sorted(folder.glob("*.ckpt"))[:_MOST_BESIDE] if p.name != named]
    for path in paths:
        try:
            if path.is_file() and not path.samefile(file.path):
                yield convert(path, Options(look_beside=False, only_vae=True))
        except (OSError, ValueError) as error:  # a CheckpointError, or a name that none can have
            if path.name == named:
                report.notes.append(f"{named:.80} cannot be used: {error!s:.300}")


def _first_difference(tree: Mapping[str, Any], other: OpenModel, reader: TreeReader) -> str:
    """Name of the first array of a VAE that differs in another checkpoint; '' if none does.

    An LDM's file may hold a rounded copy: then the other's arrays are rounded alike.
    """
    arrays = flat_names(dict(tree))
    expected = flat_names(dict(other.restore(other.meta.vae_item)))
    dtypes = {dtype for name, dtype in reader.dtypes.items() if name.startswith("vae.")}
    rounded = DTYPES[dtypes.pop() if len(dtypes) == 1 else "float32"]
    for name in sorted(arrays.keys() | expected.keys()):
        if name not in arrays or name not in expected:
            return name
        copies = (expected[name], expected[name].astype(rounded).astype(np.float32))
        if not any(np.array_equal(arrays[name], copy) for copy in copies):
            return name
    return ""
