r"""Print the rooms of the package: floors, lines, and what each room imports.

    python launch/architecture.py
    python launch/architecture.py --root=path/to/another/checkout

A room is a folder or a loose file of `chemeleon2_jax`. Imports are read from the source (inside
functions and under TYPE_CHECKING too). A room's floor is one above the highest room that it
imports; rooms that import each other in a circle have none. `tests/test_architecture.py` holds
which room may import which.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "chemeleon2_jax"


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another: `file` imports `module`, in `line`."""

    file: Path
    line: int
    module: str


def module_of(path: Path, root: Path) -> str:
    """Return the dotted name of a source file below the checkout `root`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """Return the room of a module; `__init__` for the file of the package."""
    return (*module.split("."), "__init__")[1]


def read_imports(root: Path) -> list[Import]:
    """Return every import of one module of the package by another, in the order of the files."""
    imports = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                # `from package import name`: the name may be a module or an object in it.
                own = node.module == PACKAGE
                names = [f"{PACKAGE}.{a.name}" for a in node.names] if own else [node.module]
            else:
                continue
            imports += [Import(path, node.lineno, n) for n in names if n.split(".")[0] == PACKAGE]
    return imports


def room_graph(root: Path) -> dict[str, set[str]]:
    """Return room -> rooms that it imports."""
    graph: dict[str, set[str]] = {
        room_of(module_of(path, root)): set() for path in (root / PACKAGE).rglob("*.py")
    }
    for each in read_imports(root):
        importer, imported = room_of(module_of(each.file, root)), room_of(each.module)
        if importer != imported and imported in graph:
            graph[importer].add(imported)
    return graph


def find_circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the strongly connected components of more than one node (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            component = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(component) > 1:
                circles.append(component)

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return circles


def module_graph(root: Path) -> dict[str, set[str]]:
    """Return module -> modules that it imports, without the packages' `__init__` files."""
    modules = {
        module_of(path, root)
        for path in (root / PACKAGE).rglob("*.py")
        if path.name != "__init__.py"
    }
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for each in read_imports(root):
        importer = module_of(each.file, root)
        if importer in modules and each.module in modules:
            graph[importer].add(each.module)
    return graph


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return room -> floor, 1 for what imports no other room.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    circles = find_circles(graph)
    if circles:
        raise ValueError(f"a circle of imports: {', '.join(sorted(circles[0]))}")
    levels: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in levels:
            levels[room] = 1 + max(map(floor, graph[room]), default=0)
        return levels[room]

    for room in graph:
        floor(room)
    return levels


def count_lines(root: Path) -> dict[str, tuple[int, int]]:
    """Return room -> (lines, lines of code) of its Python files.

    Lines of code are those that hold a token of a statement: not blank, no comment, no docstring.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path in (root / PACKAGE).rglob("*.py"):
        text = path.read_text("utf-8")
        count = counts[room_of(module_of(path, root))]
        count[0] += len(text.splitlines())
        count[1] += _code_lines(text)
    return {room: (lines, code) for room, (lines, code) in counts.items()}


def _code_lines(text: str) -> int:
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Expr) and is_text and node.end_lineno is not None:
            documentation.update(range(node.lineno, node.end_lineno + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documentation
        for number, line in enumerate(text.splitlines(), 1)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    root = parser.parse_args().root
    graph, lines = room_graph(root), count_lines(root)
    circles = find_circles(graph)
    levels = {} if circles else floors(graph)
    for room in sorted(graph, key=lambda r: (-levels.get(r, 0), r)):
        total, code = lines[room]
        imported = ", ".join(sorted(graph[room])) or "-"
        print(f"{levels.get(room, '-'):>2}  {room:13} {total:6} lines {code:6} code   {imported}")
    files = find_circles(module_graph(root))
    total, code = map(sum, zip(*lines.values(), strict=True))
    top = max(levels.values(), default=0)
    print(f"\n{len(graph)} rooms, {top} floors, {total} lines, {code} of code")
    for kind, groups in (("rooms", circles), ("files", files)):
        print(f"circles of {kind}: {'; '.join(', '.join(sorted(g)) for g in groups) or 'none'}")


if __name__ == "__main__":
    main()
