"""Would the tests notice? Random changes of one place of the code, each against the tests that belong to its module.

    make mutate SEED=1 N=150
    scripts/mutate.py --devices        places that move a tensor, against the pretended GPU

A place is an operator, a comparison, a number, a default, a `not`, a condition, a call that stands alone, a reduction
such as `amin`, a `detach`. All places are equally likely, so that constants have the share they have in the code;
annotations, cards, texts and what an error says are left out. A mutant is tried on the tests that name its module,
then on those of the modules that import it, and on the conformance suite of its kind; the first test that fails kills
it, and so does time that runs out where the unchanged code needs less than half of it. What is alive then is listed in
a JSON file: a person says which of it changes nothing that anybody could see.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from anypolicy import catalogue
from anypolicy.runs.metrics import wilson

ROOT = Path(__file__).parents[1]
ROOMS = ("methods", "parts", "stages", "loops", "learners", "optimisers", "data", "runs", "engines", "policies")
LEFT_OUT = ("tests/fuzz", "tests/sandbox", "tests/test_docs", "tests/test_architecture", "tests/test_benchmarks")
"""What draws too little of one module, or reads no code, to be asked about a mutant."""
SECONDS = 180
"""Most seconds of a level: a mutant that is alive then has survived it."""
TIME = "time is up"
HANGS = 60
"""Seconds after which one test has hung, which is noticed."""
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or,
    ast.Or: ast.And, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
NAMES = {"min": "max", "amin": "amax", "minimum": "maximum", "argmin": "argmax", "any": "all", "floor": "ceil",
         "cumsum": "cumprod", "sum": "mean", "zeros_like": "ones_like", "zeros": "ones", "exp": "expm1",
         "detach": "clone"}  # fmt: skip
NAMES |= {b: a for a, b in NAMES.items() if b != "clone"}


@dataclass(frozen=True)
class Place:
    """One change: bytes `begin` to `end` of a file become `now`."""

    file: str
    line: int
    begin: int
    end: int
    was: str
    now: str


@dataclass
class Tried:
    """What became of a mutant: killed or survived, by which test, at which level, after how many seconds."""

    place: Place
    verdict: str
    by: str
    level: int
    seconds: float


def negates(test: ast.expr) -> bool:
    """A `not`, or a comparison whose swap is its negation."""
    swaps = isinstance(test, ast.Compare) and not isinstance(test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    return swaps or isinstance(test, ast.UnaryOp)


def changed(node: ast.AST) -> Iterator[str]:
    """What may stand in place of an expression or statement."""
    match node:
        case ast.BinOp(_, ast.Div(), ast.Constant(str()) | ast.JoinedStr()):
            return  # a path
        case ast.BinOp(left, op, right) if type(op) in SWAPS:
            yield ast.unparse(ast.BinOp(left, SWAPS[type(op)](), right))  # type: ignore[arg-type]
        case ast.AugAssign(target, op, value) if type(op) in SWAPS:
            yield ast.unparse(ast.AugAssign(target, SWAPS[type(op)](), value))  # type: ignore[arg-type]
        case ast.BoolOp(op, values):
            yield ast.unparse(ast.BoolOp(SWAPS[type(op)](), values))  # type: ignore[arg-type]
        case ast.Compare(left, [op], [right]):
            yield ast.unparse(ast.Compare(left, [SWAPS[type(op)]()], [right]))  # type: ignore[list-item]
        case ast.If(test) | ast.While(test) if not negates(test):
            yield f"not ({ast.unparse(test)})"
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield ast.unparse(operand)
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() as value):
            yield str(value + 1)
        case ast.Constant(float() as value):
            yield repr(2 * value if value else 1.0)
        case ast.IfExp(test, body, orelse):
            yield ast.unparse(ast.IfExp(test, orelse, body))
        case ast.Call(ast.Name(name) as f, arguments, keywords) if name in NAMES:
            yield ast.unparse(ast.Call(ast.Name(NAMES[name], f.ctx), arguments, keywords))
        case ast.Call(ast.Attribute(of, name) as f, arguments, keywords) if name in NAMES:
            yield ast.unparse(ast.Call(ast.Attribute(of, NAMES[name], f.ctx), arguments, keywords))
        case ast.Expr(ast.Call()):
            yield "pass"


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below that may be changed."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Annotated", "Literal"):
        return
    fields = [x for name, x in ast.iter_fields(node) if name not in ("annotation", "returns", "decorator_list")]
    for child in (x for value in fields for x in (value if isinstance(value, list) else [value])):
        if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr | ast.Raise | ast.Assert):
            yield child
            yield from parts(child)


def place_of(path: Path, source: bytes, node: ast.AST, now: str) -> Place:
    """A node of a file, with what stands there instead."""
    starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
    end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
    new = now if isinstance(node, ast.stmt) else f"({now})"
    return Place(str(path.relative_to(ROOT)), node.lineno, begin, end, source[begin:end].decode(), new)  # type: ignore[attr-defined]


def places(path: Path) -> list[Place]:
    """Everything that can be changed in a file."""
    source = path.read_bytes()
    found = ((node.test if isinstance(node, ast.If | ast.While) else node, now)
             for node in parts(ast.parse(source)) for now in changed(node))  # fmt: skip
    out = [place_of(path, source, node, now) for node, now in found]
    return [place for place in out if compiles(mutated(source, place))]


def mutated(source: bytes, place: Place) -> bytes:
    """The file with the change."""
    return source[: place.begin] + place.now.encode() + source[place.end :]


def compiles(source: bytes) -> bool:
    """A number in a pattern, say, can be no expression."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def unmoved(path: Path) -> list[Place]:
    """Every `.to(…)`, `.cpu()` and `device=…` of a file, left out."""
    source, out = path.read_bytes(), list[Place]()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(ast.Attribute(of, "to" | "cpu")):
                now = ast.unparse(of)
            case ast.Call(f, arguments, keywords) if any(k.arg == "device" for k in keywords):
                now = ast.unparse(ast.Call(f, arguments, [k for k in keywords if k.arg != "device"]))
            case _:
                continue
        place = place_of(path, source, node, now)
        if re.search(r"device|\.cpu\(\)|CPU|master", place.was) and path.parent.name not in ("cli", "families"):
            out.append(place)
    return out


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of the package that a file names in its import statements."""
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anypolicy"):
            out |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names if alias.name.startswith("anypolicy")}
    return frozenset(out)


def named(path: Path) -> str:
    """A file of the package as a module."""
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)


@cache
def test_files() -> tuple[Path, ...]:
    """Test files that may be asked, the shortest (and so the nearest) first."""
    found = (p for p in ROOT.glob("tests/**/test_*.py") if not str(p.relative_to(ROOT)).startswith(LEFT_OUT))
    return tuple(sorted((p for p in found if "conformance" not in p.parts), key=lambda p: (p.stat().st_size, p)))


DEFAULTS = "tests/conformance/test_defaults.py::test_defaults_are_the_papers_or_have_a_reason"
CONFORMANCE = {"control": "controller", "diffusion": "diffusion_method"}
EXAMPLES = {
    "method": ("grpo", "ppo", "dapo", "dpo", "online-dpo", "kto", "sft", "grao", "vade", "mcts-dpo"),
    "controller": ("sac", "td3", "dqn", "ppo-control", "npg-igt", "bc", "dsrl"),
    "diffusion_method": ("seppo",),
}
"""Methods on which a mutant outside all methods is tried, in the suite of each kind."""


def slugs_of(file: Path) -> list[str]:
    """The methods of a file."""
    return [slug for slug, m in catalogue.methods(None).items() if m.build.__module__ == named(file)]


def conformance(file: Path) -> list[list[str]]:
    """The conformance suite of a method's family, for it alone; for other modules those of all families, for some."""
    room, kind = file.relative_to(ROOT / "src" / "anypolicy").parts[:2]
    if room == "methods" and kind == "exact":
        return []
    if room == "methods":
        wanted = {CONFORMANCE.get(kind, "method"): slugs_of(file)}
    elif room in ("learners", "policies", "loops") and kind.removesuffix(".py") in CONFORMANCE:
        wanted = {CONFORMANCE[kind.removesuffix(".py")]: EXAMPLES[CONFORMANCE[kind.removesuffix(".py")]]}
    else:
        wanted = EXAMPLES
    each = {name: " or ".join(f"[{slug}]" for slug in slugs) for name, slugs in wanted.items()}
    return [[f"tests/conformance/test_every_{name}.py", "-k", x] for name, x in each.items()]


DEVICES = ["tests/conformance/test_every_device.py"]
KINDS = {
    "language": "language or reward", "engines": "language", "stages": "language", "evaluation": "language",
    "group": "language", "control": "controller or loop or several", "learners": "controller or loop or several",
    "replay": "controller or loop or several", "transitions": "controller", "reset_free": "loop", "several": "several",
    "parts": "controller or loop", "diffusion": "diffusion or pipeline",
}  # fmt: skip
"""Rooms and files, and the tests on the pretended GPU that belong to them."""


def on_devices(file: Path) -> dict[int, list[list[str]]]:
    """The tests on the pretended GPU that belong to the file's kind."""
    kind = next((k for k in KINDS if k in file.parts or file.stem == k), None)
    return {1: [[*DEVICES, "-k", KINDS[kind]] if kind else DEVICES]}


def levels(file: Path) -> dict[int, list[list[str]]]:
    """Arguments of pytest, level by level: tests that name the module or bear its name, and the table of defaults; then
    those of the modules that import it, and the conformance suite."""
    module = named(file)
    near = [t for t in test_files() if module in imports(t) or t.stem == f"test_{file.stem}"]
    near.sort(key=lambda t: t.stem != f"test_{file.stem}")
    users = {named(p) for p in (ROOT / "src").rglob("*.py") if module in imports(p)}
    far = [t for t in test_files() if t not in near and imports(t) & users]
    paths = [[str(t.relative_to(ROOT)) for t in some] for some in (near, far)]
    if "methods" in file.parts:
        paths[0] += [f"{DEFAULTS}[{slug}]" for slug in slugs_of(file)]
    near_runs, far_runs = ([x] if x else [] for x in paths)
    return {1: near_runs or conformance(file), 2: far_runs + (conformance(file) if near_runs else [])}


class Copies:
    """Copies of sources and tests: one for each mutant at work, and one in which nothing is changed."""

    def __init__(self, scratch: Path, jobs: int):
        self.free: SimpleQueue[Path] = SimpleQueue()
        self.clean, self.passes, self.lock = copied(scratch / "clean"), dict[str, float](), Lock()
        self.deselected = list[str]()
        for i in range(jobs):
            self.free.put(copied(scratch / f"copy-{i}"))

    def control(self, arguments: list[str]) -> float:
        """Seconds in which these tests pass on the code as it is; no number is large enough where they do not."""
        with self.lock:
            key = " ".join(arguments)
            if key not in self.passes:
                began = time.monotonic()
                bad = any(run(self.clean, arguments, SECONDS))
                self.passes[key] = math.inf if bad else time.monotonic() - began
        return self.passes[key]


def copied(folder: Path) -> Path:
    """Everything that the repository holds, as it is now."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(os.path.isfile, listed.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, arguments: list[str], seconds: float) -> tuple[bool, str]:
    """Whether a test fails, and which ("" where the process broke or a test hung); False where time is up."""
    env = os.environ | {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    limit = ["-o", f"faulthandler_timeout={HANGS}", "-o", "faulthandler_exit_on_timeout=true"]
    command = [sys.executable, "-m", "pytest", "-xqp", "no:cacheprovider", "--no-header", "--tb=no", *limit, *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return False, TIME
    if done.returncode in (0, 5):
        return False, ""
    found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", done.stdout, re.MULTILINE)
    return True, found[1] if found else ""


Levels = Callable[[Path], dict[int, list[list[str]]]]


def tried(copies: Copies, place: Place, levels: Levels) -> Tried:
    """One mutant, level by level until a test fails."""
    folder, began = copies.free.get(), time.monotonic()
    file = folder / place.file
    source = file.read_bytes()
    file.write_bytes(mutated(source, place))
    try:
        found = asked(copies, folder, place, levels)
    finally:
        file.write_bytes(source)
        copies.free.put(folder)
    found.seconds = round(time.monotonic() - began, 1)
    verdict = "SURVIVED" if found.verdict == "survived" else "killed  "
    print(f"{verdict} {place.file}:{place.line}  {place.was!r} -> {place.now!r}  {found.by}", flush=True)
    return found


def asked(copies: Copies, folder: Path, place: Place, levels: Levels) -> Tried:
    """What the levels say of the mutant that stands in a copy."""
    last = ""
    for level, runs in levels(ROOT / place.file).items():
        until, left = time.monotonic() + SECONDS, list(runs)
        while left:
            arguments, given = left[0] + copies.deselected, until - time.monotonic()
            failed, by = run(folder, arguments, given)
            if failed and copies.control([by] if by else arguments) == math.inf:
                print(f"{by or arguments} fails on the unchanged code too, and is asked no more", flush=True)
                copies.deselected += ["--deselect", by] if by else []
                left = left if by else left[1:]
                continue
            if failed or (by == TIME and copies.control(arguments) < given / 2):
                return Tried(place, "killed", by or "a test hung, or its process broke", level, 0.0)
            last = by or last
            del left[0]
    return Tried(place, "survived", last, 2, 0.0)


def sampled(seed: int, n: int, rooms: list[str]) -> list[Place]:
    """n places, each as likely as any other."""
    files = sorted(p for room in rooms for p in (ROOT / "src" / "anypolicy" / room).rglob("*.py"))
    every = [place for path in files for place in places(path)]
    return random.Random(seed).sample(every, min(n, len(every)))


def main() -> None:
    """Draw, try on so many copies at a time, write the results."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("--seed", type=int, default=0)
    for name, number in (("--n", 150), ("--jobs", 2)):
        ask.add_argument(name, type=int, default=number)
    ask.add_argument("--out", type=Path, default=None)
    ask.add_argument("--rooms", nargs="*", default=list(ROOMS), help="folders of the package")
    ask.add_argument("--devices", action="store_true", help="leave out what moves tensors, place by place")
    ask.add_argument("--list", action="store_true", help="show the places and try nothing")
    given = ask.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell takes it from what runs in the background
    chosen, which = sampled(given.seed, given.n, given.rooms), levels
    if given.devices:
        found = [place for path in sorted((ROOT / "src" / "anypolicy").rglob("*.py")) for place in unmoved(path)]
        chosen, which = random.Random(given.seed).sample(found, min(given.n, len(found))), on_devices
    if given.list:
        print("\n".join(f"{p.file}:{p.line}  {p.was!r} -> {p.now!r}" for p in chosen))
        return
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    out = given.out or ROOT / f"mutants-{given.seed}.json"
    began, done, alive = time.monotonic(), list[Tried](), list[dict[str, object]]()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(given.jobs) as pool:
        copies = Copies(Path(scratch), given.jobs)
        for found in pool.map(lambda place: tried(copies, place, which), chosen):
            done.append(found)
            alive = [asdict(t.place) | {"by": t.by} for t in done if t.verdict == "survived"]
            value = {"commit": commit, "seed": given.seed, "n": len(done), "survived": len(alive),
                     "minutes": round((time.monotonic() - began) / 60, 1), "alive": alive,
                     "mutants": [asdict(t) for t in done]}  # fmt: skip
            out.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    killed, late = len(done) - len(alive), sum(x["by"] == TIME for x in alive)
    share, (low, high) = killed / max(len(done), 1), wilson(killed, len(done))
    print(f"{killed} of {len(done)} killed: {share:.0%} ({low:.0%} to {high:.0%}, Wilson 95 %)")
    print(f"of the others {late} were alive when their time was up; {out}")


if __name__ == "__main__":
    main()
