"""What runs in the scorers' process for reasoning-gym: a data set's own score, behind a grammar of its answers.

Nine data sets of reasoning-gym evaluate the answer, by `eval` or by sympy's parser, which does. Their answers are
parsed here first: text, length, depth, kinds of nodes, names and numbers are those that the data set asks for. Anything
else that Python would run is refused; what Python cannot parse cannot be run either and scores 0. No other file of ours
is imported: the source of this one goes to that process (see `sandbox/scorers.py`).
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from typing import Any

LISTS = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
ARITHMETIC = frozenset({"countdown", "puzzle24"})
EXPRESSIONS = frozenset({"simple_integration", "intermediate_integration", "polynomial_multiplication"})
EVALUATED = LISTS | ARITHMETIC | EXPRESSIONS

FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh",
     "atanh", "exp", "log", "ln", "sqrt")
)  # fmt: skip
CONSTANTS = frozenset({"C", "E", "pi"})
DEPTH, LARGEST, HIGHEST = 60, 10**15, 100
LENGTH = {"lists": 100_000, "sums": 1_000, "expressions": 4_000}

Checked = Callable[[ast.AST], bool]


def grammar(text: str, dataset: str, names: frozenset[str] = frozenset()) -> bool | None:
    """Whether an answer is what the data set may evaluate; None where it is no Python at all, so that nothing can."""
    kind = "lists" if dataset in LISTS else "sums" if dataset in ARITHMETIC else "expressions"
    if len(text) > LENGTH[kind]:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    except (MemoryError, RecursionError):
        return False
    if kind == "lists":
        return literal(tree, 0)
    return expression(tree, 0, names if kind == "expressions" else None)


def literal(node: ast.AST, depth: int) -> bool:
    """Texts and whole numbers in lists in lists."""
    if isinstance(node, ast.List | ast.Tuple):
        return depth < 3 and all(literal(item, depth + 1) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return isinstance(node.operand, ast.Constant) and type(node.operand.value) is int
    return isinstance(node, ast.Constant) and type(node.value) in (str, int)


def expression(node: ast.AST, depth: int, names: frozenset[str] | None) -> bool:
    """Sums and products of bounded numbers; with `names` powers, variables and elementary functions too."""
    if depth > DEPTH:
        return False
    below: Checked = lambda x: expression(x, depth + 1, names)  # noqa: E731
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and type(node.value) is not bool and abs(node.value) < LARGEST
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        return below(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        return below(node.left) and below(node.right)
    if names is None:
        return False
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return below(node.left) and below(node.right) and small(node.right)
    if isinstance(node, ast.Name):
        return node.id in CONSTANTS or node.id in names or (len(node.id) == 1 and node.id.isascii())
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        few = not node.keywords and 1 <= len(node.args) <= 2
        return few and node.func.id in FUNCTIONS and all(map(below, node.args))
    return False


def small(exponent: ast.AST) -> bool:
    """No power within the exponent, and no number in it that makes numbers too long to compute with."""
    parts = list(ast.walk(exponent))
    numbers = [x.value for x in parts if isinstance(x, ast.Constant) and isinstance(x.value, int | float)]
    return not any(isinstance(x, ast.Pow) for x in parts) and all(abs(n) <= HIGHEST for n in numbers)


def make(name: str, config: dict[str, Any]) -> Callable[[str | None, dict[str, Any]], float]:
    """A data set's score of an answer to one of its entries."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(name, **config)

    def score(answer: str | None, entry: dict[str, Any]) -> float:
        facts = entry["metadata"]
        of = facts.get("source_dataset", name)
        kind = of if of in EVALUATED else name
        if answer is not None and kind in EVALUATED:
            golds = {str(g) for g in (entry["answer"], *facts.get("valid_answers", ()))}
            if answer.strip() not in golds:
                variables = {*facts.get("variables", ()), facts.get("variable")} - {None}
                fit = grammar(answer, kind, frozenset(variables))
                if fit is None:
                    return 0.0
                if not fit:
                    raise builtins.Refused  # type: ignore[attr-defined]  # `scoring.py` has put it there
        return float(dataset.score_answer(answer=answer, entry=entry))

    return score
