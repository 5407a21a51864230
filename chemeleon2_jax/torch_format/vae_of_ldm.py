"""The VAE of an LDM's file: its weights are mostly there, its number of attention heads is not.

To guess the heads would be silent: with the wrong number a VAE still half reconstructs crystals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import ml_dtypes
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
from chemeleon2_jax.torch_format.torch_file import TorchFile
from chemeleon2_jax.training.plain_trees import flat_names

_ADVICE = (
    "give the checkpoint of the VAE that it was trained with (--vae, or load_model(..., vae=...))"
)

_MOST_BESIDE = 32  # files that are looked into

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
        options: how to read it; a VAE that is given there counts more than one beside the file.
        convert: opens another file.

    Raises:
        CheckpointError: there is no VAE, it is broken, or nothing tells its heads.
    """
    given = options.vae
    if not any(name.startswith("vae.") for name in reader.state.tensors):
        if given is None:
            given = next(_beside(file, reader, hyper, options=options, convert=convert), None)
            if given is None:
                raise CheckpointError(f"it does not hold its VAE; {_ADVICE}")
            reader.report.assumptions.append(
                f"it does not hold its VAE: that of {given.path.name}, which it names, is taken"
            )
        return given.meta.vae, given.restore(given.meta.vae_item)
    state = reader.state.below("vae.")
    module = own_entry(file.content).get("vae", hyper.get("vae"))
    modules = (part_of(module, "encoder"), part_of(module, "decoder"))
    try:
        sizes = vae_sizes(state, *modules, heads=options.vae_heads)
        tree = reader.read(vae_entries(sizes, "vae."), VAE, sizes)
    except HeadsUnknownError:
        sizes = vae_sizes(state, heads=(1, 1))
        tree = reader.read(vae_entries(sizes, "vae."), VAE, sizes)
        _check_given(tree, given, reader)
        if given is not None:
            others: Iterable[OpenModel] = [given]
        else:
            # One as wide as the published ones is not looked for far and wide.
            anywhere = sizes.decoder.d_model != PUBLISHED_WIDTH
            others = _beside(
                file, reader, hyper, options=options, convert=convert, anywhere=anywhere
            )
        return with_heads(sizes, _heads_for(sizes, tree, others, reader)), tree
    _check_given(tree, given, reader)
    return sizes, tree


def _check_given(tree: Mapping[str, Any], given: OpenModel | None, reader: TreeReader) -> None:
    """Raise CheckpointError where a VAE that is given is another than the one in the file."""
    if given is None:
        return
    differing = _first_difference(tree, given, reader)
    if differing:
        raise CheckpointError(
            f"{given.path} is not the VAE that it was trained with: the weights differ, first in "
            f"{differing}"
        )


def _heads_for(
    sizes: VAESizes, tree: Mapping[str, Any], others: Iterable[OpenModel], reader: TreeReader
) -> Heads:
    """Heads of the very same VAE in another file, or else of the published ones."""
    for other in others:
        if not _first_difference(tree, other, reader):
            found = other.meta.vae
            reader.report.notes.append(
                f"{other.path.name} tells the heads of its VAE: {found.decoder.nhead}"
            )
            heads = found.decoder.nhead
            return getattr(found.encoder, "nhead", heads), heads
    return published_heads(sizes, reader.report, advice=_ADVICE)


def published_heads(sizes: VAESizes, report: Report, *, advice: str) -> Heads:
    """Return the heads of the published VAEs for one as wide as they are.

    Raises:
        CheckpointError: it is not.
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
    reader: TreeReader,
    hyper: Mapping[str, Any],
    *,
    options: Options,
    convert: ConvertFn,
    anywhere: bool = False,
) -> Iterator[Converted]:
    """Yield the VAE that the file names, where it lies beside the file; with `anywhere` also those
    under other names.
    """
    name = hyper.get("vae_ckpt_path")
    named = PureWindowsPath(name).name if isinstance(name, str) else ""  # of either system
    if not options.look_beside:
        return
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
                reader.report.notes.append(f"{named:.80} cannot be used: {error!s:.300}")


def _first_difference(tree: Mapping[str, Any], other: OpenModel, reader: TreeReader) -> str:
    """Name of the first array of a VAE that another checkpoint does not have; '' if it has all.

    Where the file holds a rounded copy, rounded like it.
    """
    ours, theirs = flat_names(dict(tree)), flat_names(dict(other.restore(other.meta.vae_item)))
    kinds = {kind for name, kind in reader.dtypes.items() if name.startswith("vae.")}
    kind = kinds.pop() if len(kinds) == 1 else "float32"
    rounded = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            return name
        copies = (theirs[name], theirs[name].astype(rounded).astype(np.float32))
        if not any(np.array_equal(ours[name], copy) for copy in copies):
            return name
    return ""
