"""The house in numbers: repeated lines, longest files and functions, parameters, circles, tests per method.

A line is repeated if, stripped, it stands in another method file too; blank lines, comments, docstrings and closing
brackets do not count. `make measure` prints the figures; docs/design-notes.md keeps them.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "anypolicy"
METHODS = SOURCES / "methods"


class Function(NamedTuple):
    """A function with its size in raw lines and the number of its parameters."""

    where: str
    lines: int
    parameters: int


def code_lines(text: str) -> list[str]:
    """Stripped lines that carry code."""
    skipped = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = ((i, x.strip()) for i, x in enumerate(text.splitlines(), 1))
    return [x for i, x in lines if i not in skipped and any(c.isalnum() for c in x) and not x.startswith("#")]


def imported(text: str) -> set[str]:
    """Lines of import statements, stripped."""
    lines, out = text.splitlines(), set[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            out |= {x.strip() for x in lines[node.lineno - 1 : node.end_lineno]}
    return out


def repeated(files: list[Path], *, imports: bool) -> float:
    """The share of code lines that stand in another of these files too."""
    own: dict[Path, list[str]] = {}
    for path in files:
        text = path.read_text()
        out = set[str]() if imports else imported(text)
        own[path] = [x for x in code_lines(text) if x not in out]
    files_of = Counter(x for lines in own.values() for x in set(lines))
    total = sum(map(len, own.values()))
    return sum(files_of[x] > 1 for lines in own.values() for x in lines) / total if total else 0.0


def functions(files: list[Path]) -> Iterator[Function]:
    """Every function of the files; `self` is no parameter."""
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]
                where = f"{path.relative_to(SOURCES)}:{node.name}"
                yield Function(where, (node.end_lineno or 0) - node.lineno + 1, len(names))


def circles(files: list[Path]) -> list[list[str]]:
    """Modules that import one another in a circle, imports inside functions too (strongly connected components)."""
    after = {name_of(path): set(imports_of(path)) for path in files}
    order, low, stack, out = dict[str, int](), dict[str, int](), list[str](), list[list[str]]()

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(after[name] & after.keys()):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            found = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(found) > 1:
                out.append(sorted(found))

    for name in sorted(after):
        if name not in order:
            visit(name)
    return out


def name_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(SOURCES.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports when it runs; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text())
    typed = {id(x) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
             for x in ast.walk(node)}  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = SOURCES.parent.joinpath(*node.module.split("."))
            for a in node.names:
                yield f"{node.module}.{a.name}" if (folder / f"{a.name}.py").exists() else node.module


def tests_of(methods: list[Path]) -> dict[str, int]:
    """Test functions in tests/methods by method; 0 where there is no such file."""
    out = {}
    for path in methods:
        own = ROOT / "tests" / "methods" / f"test_{path.stem}.py"
        tree = ast.parse(own.read_text()) if own.exists() else ast.Module([], [])
        out[path.stem] = sum(isinstance(x, ast.FunctionDef) and x.name.startswith("test_") for x in ast.walk(tree))
    return out


def main() -> None:
    """Print the figures."""
    files = sorted(SOURCES.rglob("*.py"))
    methods = [p for p in files if METHODS in p.parents and p.stem != "__init__"]
    rooms = defaultdict[str, list[Path]](list)
    for path in methods:
        rooms[path.parent.name].append(path)
    print("repeated lines      with imports   without")
    for room, own in [*rooms.items(), ("all methods", methods)]:
        print(
            f"  {room:<18} {repeated(own, imports=True):8.1%} {repeated(own, imports=False):12.1%}   {len(own)} files"
        )
    print("longest files (raw lines)")
    for path in sorted(files, key=lambda p: -len(p.read_text().splitlines()))[:6]:
        print(f"  {len(path.read_text().splitlines()):>5}  {path.relative_to(SOURCES)}")
    known = list(functions(files))
    print("longest functions (raw lines)")
    for f in sorted(known, key=lambda f: -f.lines)[:6]:
        print(f"  {f.lines:>5}  {f.where}")
    print("most parameters")
    for f in sorted(known, key=lambda f: -f.parameters)[:6]:
        print(f"  {f.parameters:>5}  {f.where}")
    print(f"  {sum(f.parameters > 10 for f in known):>5}  functions have more than 10")
    found = circles(files)
    print(f"circles of imports: {len(found)}")
    for circle in found:
        print("  " + " · ".join(circle))
    tests = tests_of(methods)
    print(f"test functions of a method: median {sorted(tests.values())[len(tests) // 2]}, "
          f"in other files alone: {', '.join(k for k, n in tests.items() if not n) or 'none'}")  # fmt: skip


if __name__ == "__main__":
    main()
