"""Write the nasty files of this folder: one fault each, with what it must give in expected.csv.

python -m tests.nasty.make writes them; a test holds that the folder is what this file makes.
"""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

FOLDER = Path(__file__).parent
TABLE = "expected.csv"

SALT = ("Na1 0 0 0", "Cl1 0.5 0.5 0.5")
SAPPHIRE_H = ("Al1 0 0 0.35219", "O1 0.30625 0 0.25")
SAPPHIRE_R = ("Al1 0.35219 0.35219 0.35219", "O1 0.55625 0.94375 0.25")
POSITION = "label fract_x fract_y fract_z"


def cell(*values: float) -> str:
    """One edge; three edges; or three edges and three angles."""
    edges = values[:3] * 3 if len(values) == 1 else values[:3]
    angles = values[3:] or (90, 90, 90)
    lines = [f"_cell_length_{k} {v}\n" for k, v in zip("abc", edges, strict=False)]
    names = ("alpha", "beta", "gamma")
    return "".join(lines + [f"_cell_angle_{k} {v}\n" for k, v in zip(names, angles, strict=True)])


def sites(*rows: str, columns: str = POSITION) -> str:
    """The loop of atom sites."""
    tags = "".join(f"_atom_site_{name}\n" for name in columns.split())
    return f"loop_\n{tags}" + "".join(f"{row}\n" for row in rows)


def named(name: str, *rest: str) -> str:
    """A block with a space group's name and no operations."""
    return f"data_x\n_symmetry_space_group_name_H-M '{name}'\n" + "".join(rest)


def declared(formula: str, units: int | None = None) -> str:
    z = "" if units is None else f"_cell_formula_units_Z {units}\n"
    return f"_chemical_formula_sum '{formula}'\n{z}"


def operations(*texts: str) -> str:
    return "loop_\n_symmetry_equiv_pos_as_xyz\n" + "".join(f"'{text}'\n" for text in texts)


_NAME_P1 = "_symmetry_space_group_name_H-M 'P 1'\n"
_NUMBER = "_symmetry_Int_Tables_number 225\n"
_HALL = "_space_group_name_Hall '-F 4 2 3'\n"
_SALT = cell(5.64) + sites(*SALT)
_P1 = "data_x\n" + operations("x,y,z")
_PLAIN = _P1 + _SALT
_HEX = cell(3.82, 3.82, 6.26, 90, 90, 120)
_ALH, _ALR = cell(4.7589, 4.7589, 12.991, 90, 90, 120), cell(5.128, 5.128, 5.128, *[55.28] * 3)
_OCC = f"{POSITION} occupancy"
_TYPED = "label type_symbol fract_x fract_y fract_z"

# name -> (content, crystals of the blocks ("-" for none), what is said, the fault)
FILES: dict[str, tuple[str | bytes, str, str, str]] = {
    # --- space groups without operations ---
    "hall_only.cif": (
        "data_x\n_space_group_name_Hall '-F 4 2 3'\n" + _SALT,
        "Cl4 Na4",
        "",
        "only the Hall symbol",
    ),
    "bad_hall.cif": (
        "data_x\n_space_group_name_Hall 'zz'\n" + _SALT,
        "-",
        "unknown symmetry: Hall symbol 'zz'",
        "a Hall symbol that is none",
    ),
    **{
        f"name_{i}.cif": (named(name, _SALT), "Cl4 Na4", "", f"the name {name}")
        for i, name in enumerate(
            (
                *("F m -3 m", "F m 3 m", "Fm3m", "f m -3 m", "FM-3M", "F m -3 m (225)"),
                *("F 4/m -3 2/m", "F_m_-3_m", "Fm-3m (No. 225)"),
            )
        )
    },
    "nonsense_name.cif": (
        named("nonsense", _SALT),
        "-",
        "unknown symmetry: no space group 'nonsense'",
        "a name that is none",
    ),
    "unquoted_name.cif": (
        named("F m -3 m", _SALT).replace("'", ""),
        "Cl4 Na4",
        "without their quotes",
        "a name with spaces without quotes",
    ),
    "diamond_1.cif": (
        named("F d -3 m :1", cell(5.43), sites("Si1 0 0 0")),
        "Si8",
        "",
        "origin 1",
    ),
    "diamond_2.cif": (
        named("F d -3 m :2", cell(5.43), sites("Si1 0.125 0.125 0.125")),
        "Si8",
        "",
        "origin 2",
    ),
    "diamond_s.cif": (
        named("F d -3 m S", cell(5.43), sites("Si1 0 0 0")),
        "Si8",
        "",
        "origin 1 as older databases write it",
    ),
    "diamond_formula.cif": (
        named("F d -3 m", declared("Si", 8), cell(5.43), sites("Si1 0 0 0")),
        "Si8",
        "read as F d -3 m:1",
        "no origin, which the number of formula units tells",
    ),
    "diamond_unknown.cif": (
        named("F d -3 m", cell(5.43), sites("Si1 0 0 0")),
        "-",
        "its setting is F d -3 m:1 or F d -3 m:2",
        "no origin, and nothing that tells it",
    ),
    "sapphire_h.cif": (
        named("R -3 c :H", _ALH, sites(*SAPPHIRE_H)),
        "Al12 O18",
        "",
        "hexagonal axes",
    ),
    "sapphire_r.cif": (
        named("R -3 c :R", _ALR, sites(*SAPPHIRE_R)),
        "Al4 O6",
        "",
        "rhombohedral axes",
    ),
    "sapphire_cell.cif": (
        named("R -3 c", _ALR, sites(*SAPPHIRE_R)),
        "Al4 O6",
        "",
        "rhombohedral axes that only the cell tells",
    ),
    "monoclinic_a.cif": (
        named("P 21/a", cell(5, 6, 7, 90, 100, 90), sites("Fe1 0.1 0.2 0.3")),
        "Fe4",
        "",
        "a setting of P 21/c",
    ),
    "monoclinic_c_axis.cif": (
        named("P 21", cell(5, 6, 7, 90, 90, 100), sites("Fe1 0.1 0.2 0.3")),
        "Fe2",
        "",
        "the unique axis c, which only the cell tells",
    ),
    "number_only.cif": (
        "data_x\n_symmetry_Int_Tables_number 225\n" + _SALT,
        "Cl4 Na4",
        "only its number 225",
        "the number alone",
    ),
    "wrong_cell.cif": (
        named("F m -3 m", cell(5, 6, 7), sites(*SALT)),
        "Cl4 Na4",
        "the cell does not have the symmetry",
        "a cubic group in a cell that is not cubic",
    ),
    # --- operations ---
    "operations_win.cif": (
        named("F m -3 m", operations("x,y,z"), _SALT),
        "Cl1 Na1",
        "the operations are those of P 1, not of F m -3 m",
        "operations that are not those of the name",
    ),
    "missing_operation.cif": (
        "data_x\n" + operations("x,y,z", "-y,x,z") + _SALT,
        "Cl1 Na1",
        "operations are no group",
        "a list of operations cut short",
    ),
    **{
        f"conflict_{i}.cif": (
            "data_x\n" + declarations + _SALT,
            gives,
            says,
            "declarations of two space groups",
        )
        for i, (declarations, gives, says) in enumerate(
            (
                (_NAME_P1 + _NUMBER, "Cl1 Na1", "the space group P 1 is not number 225"),
                (
                    _NAME_P1.replace("P 1", "P m -3 m") + _NUMBER,
                    "Cl1 Na1",
                    "the space group P m -3 m is not number 225",
                ),
                (
                    operations("x,y,z") + _NUMBER,
                    "Cl1 Na1",
                    "the operations are those of P 1, not of number 225",
                ),
                (
                    operations("x,y,z") + _HALL,
                    "Cl1 Na1",
                    "the operations are those of P 1, not of Hall symbol -F 4 2 3",
                ),
                (
                    _HALL + _NAME_P1,
                    "Cl4 Na4",
                    "the space group Hall symbol -F 4 2 3 is not P 1",
                ),
                (
                    operations("x,y,z", "x+1/2,y,z") + _NAME_P1.replace("P 1", "P m -3 m"),
                    "Cl2 Na2",
                    "the operations are not those of P m -3 m",
                ),
                (_NAME_P1 + _NUMBER.replace("225", "1"), "Cl1 Na1", ""),
                (operations("x,y,z") + _NAME_P1 + _NUMBER.replace("225", "1"), "Cl1 Na1", ""),
                (_HALL + _NAME_P1.replace("P 1", "F m -3 m") + _NUMBER, "Cl4 Na4", ""),
            )
        )
    },
    "bad_operation.cif": (
        "data_x\n" + operations("x,y,foo") + _SALT,
        "-",
        "'x,y,foo' is no symmetry operation",
        "an operation that is none",
    ),
    "no_symmetry.cif": (
        "data_x\n" + _SALT,
        "Cl1 Na1",
        "no symmetry is given: read as P 1",
        "neither operations nor a group",
    ),
    # --- what the file declares ---
    "cut_at_a_line.cif": (
        named("F m -3 m", declared("Cl Na", 4), cell(5.64), sites(SALT[0])),
        "Na4",
        "formula: read Na4, declared Cl1 Na1",
        "cut at the end of a line",
    ),
    "implicit_hydrogens.cif": (
        named("P -4 3 m", declared("H4 Cl N"), cell(3.87), sites("N1 0 0 0", "Cl1 .5 .5 .5")),
        "Cl1 N1",
        "formula: read Cl1 N1, declared Cl1 H4 N1",
        "hydrogens that are in the formula only",
    ),
    "wrong_units.cif": (
        _P1 + declared("Cl Na", 4) + _SALT,
        "Cl1 Na1",
        "with Z = 4",
        "another number of formula units",
    ),
    "wrong_multiplicity.cif": (
        named(
            "F m -3 m",
            cell(5.64),
            sites("Na1 0 0 0 4", "Cl1 .5 .5 .5 8", columns=f"{POSITION} symmetry_multiplicity"),
        ),
        "Cl4 Na4",
        "multiplicities of sites: Cl1 4 (declared 8)",
        "another multiplicity",
    ),
    "close_images.cif": (
        named("P m -3 m", cell(3.9), sites("Fe1 0.0051 0.0051 0.0051", "O1 .5 .5 0")),
        "Fe8 O3",
        "atoms of site Fe1 are 0.04 angstrom apart",
        "a site beside a special position by more than its digits",
    ),
    "close_atoms.cif": (
        named("P 1", cell(4), sites("Fe1 0.99 0.02 0", "Ni1 0.02 0.99 0", "O1 .5 .5 .5")),
        "Fe1 Ni1 O1",
        "atoms Fe1 and Ni1 are 0.17 angstrom apart",
        "two atoms at one place across the faces of the cell",
    ),
    "hydrogen.cif": (
        named("P 1", cell(4), sites("H1 0 0 0", "H2 0.185 0 0")),
        "H2",
        "",
        "a short bond that is real",
    ),
    "strange_formula.cif": (
        _P1 + declared("Na(Cl)") + _SALT,
        "Cl1 Na1",
        "declared formula 'Na(Cl)' cannot be read: not compared",
        "a formula that cannot be read",
    ),
    # --- sites ---
    "three_digits.cif": (
        named("P 63/m m c", _HEX, sites("Zn1 0.333 0.667 0.25", "S1 0.667 0.333 0.25")),
        "S2 Zn2",
        "",
        "thirds with three digits",
    ),
    "two_digits.cif": (
        named("P 63 m c", _HEX, sites("Zn1 0.33 0.67 0", "S1 0.33 0.67 0.375")),
        "S2 Zn2",
        "",
        "thirds with two digits",
    ),
    "overlapping.cif": (
        _P1 + cell(5.64) + sites("Na1 0 0 0", "Na2 0 0 0"),
        "-",
        "overlapping sites: Na1 and Na2",
        "two atoms at one position",
    ),
    "split_site.cif": (
        _P1 + cell(4) + sites("Fe1 0 0 0 0.5", "Fe2 0 0 0 0.5", columns=_OCC),
        "Fe1",
        "",
        "one element in two halves",
    ),
    "partial.cif": (
        _P1 + cell(4) + sites("Fe1 0 0 0 0.5", "Ni1 0 0 0 0.5", columns=_OCC),
        "-",
        "partial occupancy: Fe:0.5, Ni:0.5 at site Fe1",
        "two elements at one position",
    ),
    **{
        f"occupancy_{i}.cif": (
            _P1 + cell(4) + sites(f"Fe1 0 0 0 {text}", columns=_OCC),
            "Fe1",
            "",
            f"the occupancy {text}",
        )
        for i, text in enumerate((".", "?", "0.9999", "1.0005", "1.00(2)"))
    },
    "occupancy_two.cif": (
        _P1 + cell(4) + sites("Fe1 0 0 0 2", columns=_OCC),
        "-",
        "impossible occupancy: 2 at site Fe1",
        "the occupancy 2",
    ),
    "attached_hydrogens.cif": (
        _P1 + cell(4) + sites("N1 0 0 0 4", columns=f"{POSITION} attached_hydrogens"),
        "-",
        "implicit hydrogens",
        "hydrogens counted at another atom",
    ),
    "no_coordinates.cif": (
        _PLAIN.replace("0.5 0.5 0.5", "? ? ?"),
        "-",
        "_atom_site_fract_x of site Cl1 is not given",
        "a site without coordinates",
    ),
    **{
        f"coordinate_{i}.cif": (
            _PLAIN.replace("0.5 0.5 0.5", f"{text} 0.5 0.5"),
            gives,
            says,
            f"the coordinate {text}",
        )
        for i, (text, gives, says) in enumerate(
            (
                ("1e400", "-", "_atom_site_fract_x of site Cl1 is '1e400', too large a number"),
                ("-2e7", "-", "impossible coordinate: _atom_site_fract_x of site Cl1 is -2e7"),
                ("0e400", "Cl1 Na1", ""),
            )
        )
    },
    "too_many_atoms.cif": (
        named("F m -3 m", cell(60), sites(*(f"Na{i} 0.0{i}1 0.11 0.23" for i in range(50)))),
        "-",
        "atoms in a crystal are too many",
        "more atoms than the limit by its symmetry",
    ),
    # --- elements ---
    "element_column.cif": (
        _P1 + cell(4) + sites("OH1 O 0 0 0", columns=_TYPED),
        "O1",
        "",
        "a label OH1 with the element O",
    ),
    **{
        f"formula_type_{i}.cif": (
            _P1 + cell(4) + sites(f"X {kind} 0 0 0", columns=_TYPED),
            "-",
            f"not an element: '{kind}', type of site X",
            f"the formula {kind} for an element",
        )
        for i, kind in enumerate(
            (
                *("Fe0.5Ni0.5", "Na-K", "H2O", "O-H", "N4H", "Fe2O3", "Na_0.5", "Fe3+Ni2+"),
                *("Fe0.5", "V_ac", "Fe(CN)6"),
            )
        )
    },
    **{
        f"ion_{i}.cif": (
            _P1 + cell(4) + sites(f"X {kind} 0 0 0", columns=_TYPED),
            f"{symbol}1",
            "",
            f"the ion {kind}",
        )
        for i, (kind, symbol) in enumerate(
            (
                *(("O2-", "O"), ("Fe+3", "Fe"), ("Na1+", "Na"), ("Cl-1", "Cl"), ("Fe0+", "Fe")),
                *(("Si4+", "Si"), ("Fe2.67+", "Fe"), ("FE(III)", "Fe"), ("Fe1", "Fe")),
            )
        )
    },
    "charged_type.cif": (
        _P1 + cell(4) + sites("X Fe3+ 0 0 0", columns=_TYPED),
        "Fe1",
        "",
        "an ion",
    ),
    "deuterium.cif": (
        _P1 + cell(4) + sites("D1 0 0 0"),
        "H1",
        "deuterium read as hydrogen, with the mass of hydrogen",
        "deuterium",
    ),
    "dummy_flag.cif": (
        _P1 + cell(4) + sites("Fe1 0 0 0 d", "C1 .3 .3 .3 dum", columns=f"{POSITION} calc_flag"),
        "Fe1",
        "1 dummy sites left out",
        "a dummy by its flag",
    ),
    **{
        f"label_{label.lower()}.cif": (
            _P1 + cell(5) + sites("Fe1 .5 .5 .5", f"{label} 0 0 0"),
            "-",
            f"not an element: '{label}'",
            f"the label {label}",
        )
        for label in (
            *("OH1", "WAT", "Va", "dum", "X1", "NH4", "Cal", "CA1"),
            *("VOID", "VACANT", "V_ac", "ION1", "SOL", "HYDROXYL", "BQ", "CENT1", "COM1", "CAT"),
        )
    },
    "labels.cif": (
        _P1
        + cell(9)
        + sites(
            *(
                f"{label} 0 0 .{i}"
                for i, label in enumerate(
                    ("V1", "I1", "S1", "Ca1", "Co1", "Ce1", "CoM", "CaT", "C1", "V_1")
                )
            )
        ),
        "C1 Ca2 Ce1 Co2 I1 S1 V2",
        "",
        "labels that begin as words",
    ),
    "label_capitals.cif": (
        _P1 + declared("Ca O") + cell(4.8) + sites("CA1 0 0 0", "O1 .5 .5 .5"),
        "Ca1 O1",
        "",
        "labels in capitals that the formula explains",
    ),
    "heavy.cif": (
        _P1 + cell(4) + sites("Fm1 0 0 0"),
        "-",
        "element above Z = 99: Fm",
        "an element beyond the models'",
    ),
    # --- text ---
    "bom.cif": (b"\xef\xbb\xbf" + _PLAIN.encode(), "Cl1 Na1", "", "a byte order mark"),
    "utf16.cif": (_PLAIN.encode("utf-16"), "Cl1 Na1", "", "UTF-16"),
    "latin1.cif": (
        _PLAIN.replace("loop_", "_publ_author 'M\u00fcller'\nloop_", 1).encode("latin-1"),
        "Cl1 Na1",
        "",
        "Latin-1",
    ),
    "upper_case_tags.cif": (
        _PLAIN.replace("loop_", "LOOP_").replace("_cell", "_CELL").replace("_atom_s", "_ATOM_S"),
        "Cl1 Na1",
        "",
        "tags in upper case",
    ),
    "text_field.cif": (
        _PLAIN.replace("loop_", "_publ_text\n;\ndata_no\nloop_\n;\nloop_", 1),
        "Cl1 Na1",
        "",
        "a text field that holds data_",
    ),
    "literal_line_ends.cif": (
        _PLAIN.replace("\n", "\\n"),
        "Cl1 Na1",
        "read as ends of lines",
        r"\n in two characters",
    ),
    "old_mac.cif": (_PLAIN.replace("\n", "\r"), "Cl1 Na1", "", "lines that end with CR"),
    "no_header.cif": (_SALT, "Cl1 Na1", "no data_ line", "no data_ line"),
    "two_blocks.cif": (
        _PLAIN + _PLAIN.replace("Na1", "K1"),
        "Cl1 Na1 | Cl1 K1",
        "",
        "two files joined, with the same block name",
    ),
    "one_bad_block.cif": (
        _PLAIN.replace("5.64", "what") + _PLAIN,
        "- | Cl1 Na1",
        "is 'what', no number",
        "a broken block before a good one",
    ),
    "mmcif.cif": (
        "data_x\n"
        + cell(50).replace("_cell_", "_cell.")
        + "loop_\n_atom_site.group_PDB\n_atom_site.type_symbol\n_atom_site.Cartn_x\n"
        "_atom_site.Cartn_y\n_atom_site.Cartn_z\nATOM N 1 2 3\n",
        "-",
        "no atom: an mmCIF of molecules has Cartesian coordinates only",
        "an mmCIF",
    ),
    "no_atoms.cif": ("data_x\n" + cell(4), "-", "no atom: the block has a cell", "no atom sites"),
    "no_crystal.cif": ("data_x\n_a b\n", "-", "no atom: the CIF has no atom sites", "no crystal"),
    "empty.cif": ("\n", "-", "unparsable CIF: empty", "an empty file"),
    "zeros.cif": (b"data_x\n\0\0", "-", "unparsable CIF: it holds zero bytes", "binary"),
    "cut_in_a_row.cif": (
        _PLAIN[:-6],
        "-",
        "line 11: an incomplete row in the loop of _atom_site_*: the file is cut short",
        "cut in a row of atoms",
    ),
    "decimal_comma.cif": (
        _PLAIN.replace("5.64", "5,64"),
        "-",
        "_cell_length_a is '5,64', no number",
        "a decimal comma",
    ),
    "two_cells.cif": (
        _PLAIN.replace("_cell_length_b", "_cell_length_a 3\n_cell_length_b"),
        "-",
        "_cell_length_a stands twice",
        "a tag with two values",
    ),
    "needle.cif": (
        _P1 + cell(1, 1, 5000) + sites(*SALT),
        "-",
        "a cell length is beyond",
        "a cell beyond the limits",
    ),
    "modulated.cif": (
        _PLAIN.replace("loop_", "_cell_modulation_dimension 1\nloop_", 1),
        "-",
        "modulated structure",
        "an incommensurate structure",
    ),
    "packed.cif.gz": (
        gzip.compress(_PLAIN.encode(), mtime=0),
        "Cl1 Na1",
        "",
        "a gzipped CIF",
    ),
    # --- other formats ---
    "no_names.vasp": (
        "cell\n1\n4 0 0\n0 4 0\n0 0 4\n1\nDirect\n0 0 0\n",
        "-",
        "unparsable POSCAR: it does not name its elements",
        "a POSCAR without elements",
    ),
    "named.vasp": (
        "cell\n1\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n1 1\nDirect\n0 0 0\n.5 .5 .5\n",
        "Cl1 Na1",
        "",
        "a POSCAR",
    ),
    "many_zeros.vasp": (
        "\n1\n4 0 0\n0 4 0\n0 0 4\nNa\nCl\n0000000999999999\n1\nDirect\n0 0 0\n",
        "-",
        "999999999 atoms in a crystal are too many",
        "the same in more digits and lines",
    ),
    "many.vasp": (
        "cell\n1\n4 0 0\n0 4 0\n0 0 4\nNa\n999999999\nDirect\n0 0 0\n",
        "-",
        "999999999 atoms in a crystal are too many",
        "a POSCAR that asks for memory",
    ),
}  # fmt: skip


def contents() -> dict[str, bytes]:
    """Return the bytes of every file of the folder."""
    files = {
        name: content if isinstance(content, bytes) else content.encode()
        for name, (content, *_) in FILES.items()
    }
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "gives", "says", "fault"])
    writer.writerows([name, *rest] for name, (_, *rest) in FILES.items())
    return {**files, TABLE: table.getvalue().encode()}


if __name__ == "__main__":
    for name, content in contents().items():
        (FOLDER / name).write_bytes(content)
