"""Pictures of crystals, drawn with numpy and matplotlib, and parity plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monty.serialization import loadfn
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals.arrays import lattice_from_parameters, lattice_parameters
from chemeleon2_jax.crystals.structures import structure_from_arrays

_PANEL_INCHES = 2.5
_DOTS_PER_INCH = 120
_PIXELS = 640  # of a panel before it is scaled down, which smooths the edges
_RADIUS_SCALE = 0.5  # of the covalent radius, so that most atoms do not touch
_ON_FACE = 0.2  # angstrom; closer atoms are drawn on the opposite face as well
_MAX_SPHERES = 2000
MAX_PANELS = 64
"""Crystals in a picture; more would take minutes, and pixels that no viewer shows."""

_AZIMUTH, _ELEVATION = np.radians(25.0), np.radians(14.0)
_LIGHT = np.array([-0.42, 0.56, 0.71])
_EDGE_COLOUR = (0.35, 0.35, 0.35)
_DEFAULT_COLOUR, _DEFAULT_RADIUS = (0.6, 0.6, 0.6), 1.7  # elements missing from the tables


@dataclass(frozen=True)
class _Scene:
    """Spheres and cell edges in the viewer's frame: x right, y up, z towards the eye; angstrom."""

    centres: np.ndarray  # (P, 3)
    radii: np.ndarray  # (P,)
    colours: np.ndarray  # (P, 3), 0..1
    edges: np.ndarray  # (12, 2, 3)


def save_grid(
    structures: Sequence[Any],
    path: str | Path,
    *,
    columns: int = 4,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw crystals as a grid of unit cells and save it as a PNG.

    Atoms on a face, edge or corner of the cell are drawn on the opposite ones too. The panel of a
    crystal that cannot be drawn shows the reason.

    Args:
        structures: pymatgen structures, (atom_types, frac_coords, lattice) triples, or None for a
            crystal that could not be built.
        path: of the PNG; its folder is made if missing.
        columns: panels in a row.
        titles: lines above the formulas, one per structure.

    Returns:
        The path.

    Raises:
        ValueError: no structures or more than `MAX_PANELS`, no columns, or a number of titles that
            differs from that of structures.
    """
    figure = _grid(structures, columns=columns, titles=titles)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def draw_grid(
    structures: Sequence[Any], *, columns: int = 4, titles: Sequence[str] | None = None
) -> np.ndarray:
    """Draw crystals as `save_grid` does: (height, width, 3) uint8.

    Raises:
        ValueError: see `save_grid`.
    """
    return figure_pixels(_grid(structures, columns=columns, titles=titles))


def figure_pixels(figure: Figure) -> np.ndarray:
    """Render a figure: (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _grid(structures: Sequence[Any], *, columns: int, titles: Sequence[str] | None) -> Figure:
    if len(structures) > MAX_PANELS:
        raise ValueError(
            f"{len(structures)} crystals are too many for a picture: the limit is {MAX_PANELS}; "
            f"draw some of them, as in structures[:{MAX_PANELS}]"
        )
    if not len(structures) or columns < 1:
        raise ValueError(f"nothing to draw: {len(structures)} structures in {columns} columns")
    if titles is not None and len(titles) != len(structures):
        raise ValueError(f"{len(titles)} titles for {len(structures)} structures")
    columns = min(columns, len(structures))
    rows = -(-len(structures) // columns)
    height = _PANEL_INCHES * (1.2 if titles is None else 1.28)
    figure = Figure(figsize=(columns * _PANEL_INCHES, rows * height), dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    for index, structure in enumerate(structures):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, structure, None if titles is None else titles[index])
    figure.tight_layout(pad=0.6)
    return figure


def _draw_panel(axes: Axes, structure: Any, title: str | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("0.85")
    heading = [] if title is None else [title]
    try:
        if structure is None:
            raise ValueError("could not be built")
        if not isinstance(structure, Structure):
            structure = structure_from_arrays(*structure)
        image = render(structure)
    except (TypeError, ValueError) as error:
        axes.set_aspect("equal")
        axes.set_title("\n".join([*heading, "no picture"]), fontsize=9, color="0.4")
        axes.text(0.5, 0.5, str(error), ha="center", va="center", wrap=True, fontsize=8)
        return
    axes.imshow(image, interpolation="antialiased")
    formula = structure.composition.reduced_formula
    subscripted = "".join(f"$_{{{c}}}$" if c.isdigit() else c for c in formula)
    count = f"{len(structure)} atom{'s' if len(structure) != 1 else ''}"
    lines = [*heading, f"{subscripted}   ({count})"]
    axes.set_title("\n".join(lines), fontsize=9 if len(formula) <= 20 else 6.5)
    _draw_key(axes, structure)


def _draw_key(axes: Axes, structure: Structure) -> None:
    """Put the colour of each element below the picture."""
    symbols = [element.symbol for element in structure.composition.elements]
    share = min(1.0, 0.2 * len(symbols))  # of the width of the panel
    places = 0.5 + share * ((np.arange(len(symbols)) + 0.5) / len(symbols) - 0.5)
    size = 7.5 if len(symbols) <= 8 else 5
    for symbol, place in zip(symbols, places, strict=True):
        axes.scatter(
            place - 0.03,
            -0.06,
            s=size * 5,
            color=[_colour(symbol)],
            edgecolors="0.4",
            linewidths=0.5,
            transform=axes.transAxes,
            clip_on=False,
        )
        axes.text(place + 0.02, -0.06, symbol, fontsize=size, va="center", transform=axes.transAxes)


def render(structure: Structure, *, pixels: int = _PIXELS) -> np.ndarray:
    """Draw a structure's unit cell on white: (pixels, pixels, 3), values 0..1.

    Raises:
        ValueError: too many atoms for a picture, or partial occupancy.
    """
    scene = _build_scene(structure)
    corners = scene.edges.reshape(-1, 3)
    low = np.minimum(corners, (scene.centres - scene.radii[:, None]).min(0)).min(0)
    high = np.maximum(corners, (scene.centres + scene.radii[:, None]).max(0)).max(0)
    extent = float((high - low)[:2].max()) * 1.06
    scale = pixels / extent
    origin = (low + high) / 2 - extent / 2
    image = np.ones((pixels, pixels, 3))
    depth = np.full((pixels, pixels), -np.inf)
    _paint_edges(image, depth, (scene.edges - origin) * scale)
    centres = (scene.centres - origin) * scale
    for centre, radius, colour in zip(centres, scene.radii * scale, scene.colours, strict=True):
        _paint_sphere(image, depth, centre, radius, colour)
    return image[::-1]  # rows of an image count from the top


def _build_scene(structure: Structure) -> _Scene:
    if not structure.is_ordered:
        raise ValueError("partial occupancy")
    # Standard orientation: the picture does not depend on the orientation of the cell.
    lattice = lattice_from_parameters(*lattice_parameters(structure.lattice.matrix)) @ _view()
    lengths = np.linalg.norm(lattice, axis=1)
    positions, symbols = [], []
    near = np.minimum(_ON_FACE / lengths, 0.25)
    for site in structure:
        frac = site.frac_coords % 1.0
        shifts = [
            (0, 1) if f < n else (0, -1) if f > 1 - n else (0,)
            for f, n in zip(frac, near, strict=True)
        ]
        positions += [frac + np.array(shift) for shift in product(*shifts)]
        symbols += [site.specie.symbol] * int(np.prod([len(s) for s in shifts]))
    if len(positions) > _MAX_SPHERES:
        raise ValueError(f"{len(structure)} atoms are too many for a picture")
    corners = np.array(list(product((0.0, 1.0), repeat=3)))
    pairs = [(a, b) for a in corners for b in corners if (b - a).sum() == 1 and (b >= a).all()]
    return _Scene(
        centres=np.array(positions) @ lattice,
        radii=np.array([CovalentRadius.radius.get(s, _DEFAULT_RADIUS) for s in symbols])
        * _RADIUS_SCALE,
        colours=np.array([_colour(s) for s in symbols]),
        edges=np.array(pairs) @ lattice,
    )


def _view() -> np.ndarray:
    """Rotation (3, 3) from the standard orientation to the viewer's frame, for row vectors.

    Looks along -a from a little to the side and above, c upwards.
    """
    eye = np.array(
        [
            np.cos(_ELEVATION) * np.cos(_AZIMUTH),
            np.cos(_ELEVATION) * np.sin(_AZIMUTH),
            np.sin(_ELEVATION),
        ]
    )
    right = np.cross([0.0, 0.0, 1.0], eye)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(eye, right), eye], axis=1)


def _paint_sphere(
    image: np.ndarray, depth: np.ndarray, centre: np.ndarray, radius: float, colour: np.ndarray
) -> None:
    """Paint the visible part of a sphere into image and depth, in pixels."""
    low = np.maximum(np.floor(centre[:2] - radius).astype(int), 0)
    high = np.ceil(centre[:2] + radius).astype(int) + 1
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    height, width = depth[window].shape
    x = (low[0] + np.arange(width) - centre[0]) / radius
    y = (low[1] + np.arange(height) - centre[1])[:, None] / radius
    square = x**2 + y**2
    z = np.sqrt(np.maximum(1.0 - square, 0.0))
    front = centre[2] + z * radius
    visible = (square <= 1.0) & (front > depth[window])
    lit = np.maximum(x * _LIGHT[0] + y * _LIGHT[1] + z * _LIGHT[2], 0.0)
    shade = (0.55 + 0.45 * lit) * np.where(square > 0.93, 0.6, 1.0)  # a dark rim parts neighbours
    highlight = 0.55 * lit**24
    pixels = shade[..., None] * colour * (1 - highlight[..., None]) + highlight[..., None]
    image[window][visible] = pixels[visible]
    depth[window][visible] = front[visible]


def _paint_edges(image: np.ndarray, depth: np.ndarray, edges: np.ndarray) -> None:
    """Paint lines between pairs of points (12, 2, 3), in pixels."""
    width = max(1, round(len(image) * 0.004))
    steps = np.linspace(0.0, 1.0, 2 * len(image))[:, None]
    for start, end in edges:
        points = start + steps * (end - start)
        columns, rows = np.round(points[:, :2]).astype(int).T
        for i, j in product(range(-(width // 2), width - width // 2), repeat=2):
            x, y = columns + i, rows + j
            inside = (x >= 0) & (y >= 0) & (x < len(image)) & (y < len(image))
            image[y[inside], x[inside]] = _EDGE_COLOUR
            depth[y[inside], x[inside]] = np.maximum(depth[y[inside], x[inside]], points[inside, 2])


@cache
def _colours() -> dict[str, tuple[float, float, float]]:
    table = loadfn(str(files("pymatgen.vis") / "ElementColorSchemes.yaml"))["Jmol"]
    return {symbol: tuple(value / 255 for value in rgb) for symbol, rgb in table.items()}


def _colour(symbol: str) -> tuple[float, float, float]:
    return _colours().get(symbol, _DEFAULT_COLOUR)


def parity_plot(known: np.ndarray, predicted: np.ndarray, *, name: str) -> np.ndarray:
    """Draw predicted values (N,) over known ones (N,), with the line of equality.

    Returns:
        (height, width, 3) uint8.
    """
    figure = Figure(figsize=(4.0, 4.0), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(known, predicted, s=6.0, alpha=0.4, linewidths=0.0)
    finite = np.concatenate([known, predicted])
    finite = finite[np.isfinite(finite)]
    if finite.size:
        ends = [finite.min(), finite.max()]
        axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set_xlabel(f"{name}, known")
    axes.set_ylabel(f"{name}, predicted")
    return figure_pixels(figure)
