"""What counts as passed in tests: their asserts, and that they themselves answer each exception of the candidate.

Given to Python as text before `inside.py`, where a candidate is judged. Nothing but the standard library.
"""

from __future__ import annotations

import ast
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


MOST = 100  # open exceptions; tests that leave so many have failed


class Lost(Exception):
    """The candidate gave no usable answer and never will: no test can expect that."""


class Counted(ast.NodeTransformer):
    """Asserts count and let the tests go on; asserted constants are dropped. `except` and `with` tell what they meet.

    The exception of a `with` is answered if it ends there; one that goes on, or is raised again, is open once more.
    """

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if isinstance(node.test, ast.Constant) and node.test.value:
            return ast.copy_location(ast.Pass(), node)
        return around([node], "try:\n    pass\n    judge_passed()\nexcept:\n    judge_failed()")

    def visit_Try(self, node: ast.Try | ast.TryStar) -> ast.stmt:
        instead = any(map(never, (*node.body, *node.orelse)))
        self.generic_visit(node)
        for handler in node.handlers:
            handler.body.insert(0, at(handler, f"judge_caught({instead})"))
        return node

    def visit_With(self, node: ast.With | ast.AsyncWith) -> ast.stmt:
        self.generic_visit(node)
        node.body = [around(node.body, "try:\n    pass\nexcept BaseException:\n    judge_caught()\n    raise")]
        return around([node], "try:\n    pass\nexcept BaseException:\n    judge_again()\n    raise")

    def visit_Raise(self, node: ast.Raise) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        if node.exc is None:
            return [at(node, "judge_again()"), node]
        node.exc = ast.Call(ast.Name("judge_again", ast.Load()), [node.exc], [])
        return node

    visit_TryStar, visit_AsyncWith = visit_Try, visit_With


def never(node: ast.stmt) -> bool:
    """Whether this is an assert that always fails: it stands where an exception must come before."""
    return isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and not node.test.value


def at(place: ast.AST, code: str) -> ast.stmt:
    """A statement, on the line of another one."""
    [new] = ast.parse(code).body
    for node in ast.walk(new):
        if hasattr(node, "lineno"):
            ast.copy_location(node, place)
    return new


def around(body: list[ast.stmt], code: str) -> ast.stmt:
    """A `try` whose first statement these replace."""
    new = at(body[0], code)
    assert isinstance(new, ast.Try)
    new.body[:1] = body
    return new


def counted(tests: str) -> types.CodeType:
    """The tests, with calls of a `Judge` where something counts."""
    return compile(ast.fix_missing_locations(Counted().visit(ast.parse(tests))), "tests", "exec")


class Judge:
    """Counts, and remembers what failed first and which exceptions of the candidate the tests have not answered."""

    def __init__(self) -> None:
        self.passed, self.failed, self.first = 0, 0, ""
        self.open: list[Exception] = []

    def names(self) -> dict[str, Any]:
        """What the counted tests call."""
        return {
            "judge_passed": self.good, "judge_failed": self.bad, "judge_caught": self.caught, "judge_again": self.again,
        }  # fmt: skip

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the candidate whose exceptions stay open until the tests' own text catches them."""

        def function(*given: Any, **named: Any) -> Any:
            try:
                return call(*given, **named)
            except Exception as error:
                error.__dict__["of_candidate"] = True
                if len(self.open) < MOST and (isinstance(error, Lost) or not expected()):
                    self.open.append(error)
                raise

        return function

    def good(self) -> None:
        """An assert held: it counts unless an exception has gone missing, in it or before it."""
        under_way = list(chain(sys.exc_info()[1]))
        missing = [e for e in self.open if not among(e, under_way)]
        self.open = [e for e in self.open if among(e, under_way)]
        if missing:
            self.count_failed(missing[0], " (raised by the candidate, and the tests did not see it)")
        else:
            self.passed += 1

    def bad(self) -> None:
        """An assert failed, or the tests ended early."""
        self.open.clear()
        self.count_failed(sys.exc_info()[1], "")

    def end(self, lost: str) -> None:
        """The tests have ended; a candidate that was lost before cannot have passed them."""
        if self.open:
            self.good()
        if lost and not self.failed:
            self.failed, self.first = 1, lost

    def caught(self, instead: bool = False) -> None:
        """The tests' own text has an exception in its hands; `instead` of an assert that counts when it is reached."""
        error = sys.exc_info()[1]
        mine = [e for e in chain(error) if not isinstance(e, Lost)]
        self.open = [e for e in self.open if not among(e, mine)]
        if instead and not isinstance(error, Lost) and hasattr(error, "of_candidate"):
            self.passed += 1

    def again(self, error: Any = None) -> Any:
        """An exception goes on its way: an argument of `raise`, or the one in hand."""
        raised = sys.exc_info()[1] if error is None else error
        if isinstance(raised, Exception) and hasattr(raised, "of_candidate") and not among(raised, self.open):
            self.open.append(raised)
        return error

    def count_failed(self, error: BaseException | None, remark: str) -> None:
        self.failed += 1
        if not self.first:
            line = line_of(error)
            self.first = (f"line {line} of the tests: " if line else "") + in_words(error) + remark


def line_of(error: BaseException | None) -> int:
    """The innermost line of the tests on an exception's way, or else the one that now runs; 0 if there is none."""
    trace, frame = error.__traceback__ if error else None, sys._getframe()  # pyright: ignore[reportPrivateUsage]
    lines: list[int] = []
    while trace:
        lines += [trace.tb_lineno] if trace.tb_frame.f_code.co_filename == "tests" else []
        trace = trace.tb_next
    while frame and not lines:
        lines += [frame.f_lineno] if frame.f_code.co_filename == "tests" else []
        frame = frame.f_back
    return lines[-1] if lines else 0


def in_words(error: BaseException | None) -> str:
    """Type and text of an exception, shortened; its text may be impossible to make."""
    try:
        text = str(error)[:1000]
    except Exception:
        text = ""
    return f"{type(error).__name__[:100]}: {text}".rstrip(": ")


def among(error: BaseException, some: list[Any]) -> bool:
    """Whether it is one of them; equality may be anything."""
    return any(error is other for other in some)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that led to it."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]


def expected() -> bool:
    """Whether unittest's assertRaises made the call, given the function instead of a block: it looks for itself."""
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame:
        if frame.f_code.co_name == "handle" and frame.f_globals.get("__name__") == "unittest.case":
            return True
        frame = frame.f_back
    return False
