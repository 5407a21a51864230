"""Pictures of crystals, and panels of crystals that cannot be drawn."""

import numpy as np
import pytest
from matplotlib.image import imread
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals import visualize
from chemeleon2_jax.crystals.visualize import draw_grid, render, save_grid

CAESIUM_CHLORIDE = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
TRIPLE = (np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.eye(3) * 4.0)


def count_pixels(image, colour, tolerance=0.15):
    """Pixels of about the hue of `colour`, whatever their brightness."""
    hue = image / np.maximum(image.sum(-1, keepdims=True), 1e-9)
    expected = np.array(colour) / np.sum(colour)
    return int((np.abs(hue - expected).max(-1) < tolerance / 5).sum())


@pytest.mark.parametrize(
    ("structures", "columns", "titles"),
    [
        ([CAESIUM_CHLORIDE], 4, None),
        ([CAESIUM_CHLORIDE, TRIPLE, None], 2, ["a", "b", "c"]),
        ([None], 1, None),
    ],
)
def test_size_of_the_grid(tmp_path, structures, columns, titles):
    path = save_grid(structures, tmp_path / "new" / "grid.png", columns=columns, titles=titles)
    assert path == tmp_path / "new" / "grid.png"
    picture = imread(path)
    columns = min(columns, len(structures))
    rows = -(-len(structures) // columns)
    height, width = picture.shape[:2]
    assert width == columns * 300
    assert height == pytest.approx(rows * 300 * (1.2 if titles is None else 1.28), abs=2)


def test_no_global_state(tmp_path):
    import matplotlib.pyplot as plt

    save_grid([CAESIUM_CHLORIDE], tmp_path / "grid.png")
    assert plt.get_fignums() == []


def test_atoms_on_faces_are_repeated():
    scene = visualize._build_scene(CAESIUM_CHLORIDE)
    assert len(scene.centres) == 8 + 1
    assert len(scene.edges) == 12
    almost = CAESIUM_CHLORIDE.copy()
    almost.translate_sites([0], [-0.01, 0.01, 0.0], to_unit_cell=True)
    assert len(visualize._build_scene(almost).centres) == 8 + 1
    face = Structure(Lattice.cubic(4), ["O"], [[0.5, 0.5, 0.0]])
    assert len(visualize._build_scene(face).centres) == 2


def test_the_view_is_a_rotation():
    view = visualize._view()
    np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(view) == pytest.approx(1.0)


def test_the_picture_does_not_depend_on_the_orientation():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    lattice = np.array([[4.0, 0, 0], [1, 5, 0], [0, 1, 6]])
    first, second = (
        Structure(Lattice(matrix), ["Fe", "O"], [[0.1, 0.2, 0.3], [0.6, 0.7, 0.5]])
        for matrix in (lattice, lattice @ turn)
    )
    np.testing.assert_allclose(render(first, pixels=100), render(second, pixels=100), atol=1e-6)


def test_nearer_atoms_hide_farther_ones():
    """Oxygen (red) behind or before a large iodine atom, as seen along the view."""
    eye = visualize._view()[:, 2]
    lattice = Lattice.cubic(12.0)
    counts = []
    for side in (1.0, -1.0):
        centre = np.array([6.0, 6.0, 6.0])
        structure = Structure(
            lattice, ["I", "O"], [centre, centre + side * 2 * eye], coords_are_cartesian=True
        )
        # In standard orientation, as here, a is along x.
        counts.append(count_pixels(render(structure, pixels=200), visualize._colour("O")))
    assert counts[0] > 20
    assert counts[1] == 0


@pytest.mark.parametrize(
    "structure",
    [
        Structure(Lattice.cubic(3), ["Es"], [[0, 0, 0]]),
        Structure(Lattice.from_parameters(0.6, 3, 30, 80, 85, 20), ["C"], [[0.5, 0.5, 0.5]]),
        Structure(Lattice.cubic(4), ["C", "O"], [[0, 0, 0], [0.0, 0.0, 0.0]]),
        Structure(Lattice.cubic(40), ["H"], [[0.5, 0.5, 0.5]]),
    ],
)
def test_odd_cells(structure):
    image = render(structure, pixels=120)
    assert image.shape == (120, 120, 3)
    assert image.min() >= 0.0
    assert image.max() <= 1.0
    assert (image < 1).any()


def drawn_text(structures, tmp_path, monkeypatch):
    texts = []
    original = visualize._draw_panel

    def draw(axes, structure, title):
        original(axes, structure, title)
        texts.append([axes.get_title(), *(text.get_text() for text in axes.texts)])

    monkeypatch.setattr(visualize, "_draw_panel", draw)
    save_grid(structures, tmp_path / "grid.png", titles=[str(i) for i in range(len(structures))])
    return texts


def test_titles_and_reasons(tmp_path, monkeypatch):
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    not_finite = (TRIPLE[0], TRIPLE[1] * np.nan, TRIPLE[2])
    single = Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]])
    texts = drawn_text(
        [CAESIUM_CHLORIDE * 2, single, None, not_finite, disordered], tmp_path, monkeypatch
    )
    assert texts == [
        ["0\nCsCl   (16 atoms)", "Cs", "Cl"],
        ["1\nFe   (1 atom)", "Fe"],
        ["2\nno picture", "could not be built"],
        ["3\nno picture", "fractional coordinates are not finite"],
        ["4\nno picture", "partial occupancy"],
    ]


def test_too_many_atoms(monkeypatch):
    monkeypatch.setattr(visualize, "_MAX_SPHERES", 8)
    with pytest.raises(ValueError, match="2 atoms are too many"):
        render(CAESIUM_CHLORIDE)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw: 0 structures"):
        save_grid([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="200 crystals are too many for a picture"):
        save_grid([None] * 200, tmp_path / "a.png")
    with pytest.raises(ValueError, match="in 0 columns"):
        save_grid([None], tmp_path / "a.png", columns=0)
    with pytest.raises(ValueError, match="1 titles for 2"):
        save_grid([None, None], tmp_path / "a.png", titles=["a"])


def test_pixels_of_a_grid(tmp_path):
    structures = [CAESIUM_CHLORIDE, None]
    pixels = draw_grid(structures, titles=["one", "two"])
    saved = imread(save_grid(structures, tmp_path / "grid.png", titles=["one", "two"]))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*saved.shape[:2], 3)
    np.testing.assert_allclose(pixels / 255, saved[..., :3], atol=1e-2)
