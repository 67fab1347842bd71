"""Rules of the house that a machine can check."""

import ast
import re
from pathlib import Path

import pytest

from anypolicy import catalogue

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "src").rglob("*.py"))
PIPES = {"sandbox"}
"""Whose JSON goes from one Python to another and is in no file."""


def code_lines(text: str) -> int:
    """Lines that carry code: no blank lines, comments, docstrings or imports."""
    tree = ast.parse(text)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                skipped.update(range(first.lineno, (first.end_lineno or 0) + 1))
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for i, x in lines if x.strip() and not x.strip().startswith("#") and i not in skipped)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_sizes_and_forbidden_calls(path):
    text = path.read_text()
    assert code_lines(text) <= (150 if "methods" in path.relative_to(ROOT).parts else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 75, node.name
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "pickle" not in ast.unparse(node) and not ast.unparse(node).startswith("from json import")
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads", "torch.save"), name
            if name in ("json.dump", "json.dumps") and not PIPES & set(path.relative_to(ROOT).parts):
                assert "allow_nan=False" in [ast.unparse(k) for k in node.keywords], "use runs.strict_json.json_text"
            assert not re.match(r"(np|numpy)\.random\.(seed|rand|randn|choice)$", name), name


@pytest.mark.parametrize("slug", sorted(catalogue.methods()))
def test_a_methods_name_stands_only_in_its_file(slug):
    """Examples in docstrings of the command line and the package may name methods; code may not. A method may name another whose stage contradicts its own."""
    own = Path(catalogue.get(slug).build.__code__.co_filename).resolve()
    for path in FILES:
        if path.resolve() == own or "methods" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.fullmatch(rf"{slug}([+.].*)?", text):
                raise AssertionError(f"{path}:{node.lineno}")
