"""Run directories as somebody else, a full disk or an editor left them."""

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

import anypolicy as ap
from anypolicy.data.readers import yaml_value
from anypolicy.evidence.claims import run_claim
from anypolicy.families import control, diffusion, reward_models
from anypolicy.families import language as training
from anypolicy.families.base import evaluate, family_of_run
from anypolicy.families.language_pages import page as run_page
from anypolicy.runs.checkpoint import Position, load_checkpoint
from anypolicy.runs.directory import RunDirectory
from anypolicy.studies.inspection import inspect
from tests.fuzz.harness import allowed, broken, broken_lines, broken_safetensors, cases, edited, found, safetensors_of

TINY = {"trackers": (), "threads": 1, "quiet": True}


def language(folder: Path) -> None:
    ap.train(
        "grpo",
        task="tabular-lock:prompts=4,length=2",
        steps=2,
        prompts=2,
        group_size=2,
        eval_every=1,
        checkpoint_every=1,
        record=True,
        out=folder,
        **TINY,
    )


def controller(folder: Path) -> None:
    control.train_controller(
        "dqn",
        task="gym/CartPole-v1",
        steps=40,
        eval_episodes=1,
        checkpoint_every=20,
        out=folder,
        knobs={"hidden": (4,), "warmup": 8, "batch": 4},
        **TINY,
    )


def points(folder: Path) -> None:
    diffusion.train_diffusion(
        "diffusion-sft",
        task="ring8",
        policy="fresh",
        steps=2,
        eval_samples=8,
        checkpoint_every=1,
        out=folder,
        knobs={"batch": 4},
        **TINY,
    )


def reward_model(folder: Path) -> None:
    pairs = folder.parent / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "chosen": "yes", "rejected": "no"}) + "\n" for i in range(4))
    )
    ap.train_reward_model(
        "bradley-terry",
        pairs=pairs,
        policy="transformer:layers=1,width=8,heads=2,context=64",
        checkpoint_every=1,
        out=folder,
        **TINY,
    )


MAKE: dict[str, Callable[[Path], None]] = {
    "language": language,
    "controller": controller,
    "diffusion": points,
    "reward": reward_model,
}
RESUME: dict[str, Callable[..., Any]] = {
    "language": training.resume,
    "controller": control.resume,
    "diffusion": diffusion.resume,
    "reward": reward_models.resume,
}
EVALUATE: dict[str, Callable[..., Any]] = {
    "language": evaluate,
    "controller": control.evaluate_run,
    "diffusion": diffusion.evaluate_run,
    "reward": reward_models.evaluate,
}


@functools.cache
def runs() -> dict[str, dict[str, bytes]]:
    """The files of one small finished run of every family."""
    found: dict[str, dict[str, bytes]] = {}
    work = Path(tempfile.mkdtemp(prefix="anypolicy-fuzz-"))
    for kind, make in MAKE.items():
        make(work / kind)
        files = sorted(f for f in (work / kind).rglob("*") if f.is_file() and f.name not in (".lock", "report.html"))
        found[kind] = {str(f.relative_to(work / kind)): f.read_bytes() for f in files}
    return found


def checkpoint_of(kind: str) -> str:
    """The folder of a run's only checkpoint."""
    return next(name for name in runs()[kind] if name.endswith("manifest.json")).rpartition("/")[0]


def put(folder: Path, kind: str, changed: dict[str, Any]) -> Path:
    """The run with changed files (None: gone, a function: of what was there), its manifest as it was."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in (runs()[kind] | changed).items():
        if callable(data):
            data = data(runs()[kind][name])
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


def signed(folder: Path) -> Path:
    """The run with a manifest that is right for whatever its checkpoint holds, as somebody who means it would write."""
    for file in folder.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(file.read_bytes())
        for name in manifest["files"]:
            if (file.parent / name).is_file():
                manifest["files"][name]["sha256"] = hashlib.sha256((file.parent / name).read_bytes()).hexdigest()
        file.write_text(json.dumps(manifest))
    return folder


def as_yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, UnicodeError):
        return json.dumps(value).encode()


kinds = st.sampled_from(sorted(MAKE))
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{b}: &{b} [{','.join('*' + a for _ in range(9))}]\n".encode() for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
recipes = kinds.flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.deferred(lambda: edited(yaml.safe_load(runs()[kind]["recipe.yaml"])).map(as_yaml))
        | st.deferred(lambda: broken(runs()[kind]["recipe.yaml"]))
        | st.sampled_from(
            (
                BOMB,
                b"",
                b"&a [*a]",
                b"- " * 1000,
                b"[" * 5000,
                b"method: grpo\nmethod: dapo\n",
                b"!!python/object/apply:os.system [true]",
                b"\xff\xfe",
                b"x: 2001-99-99",
                b"? [1]\n: 2\n",
                b"{[]: 1}",
                b"task: !!binary x",
            )
        ),
    )
)


CYCLE, DEEP, TWICE = b"&a [*a]", b"- " * 1000, b"method: grpo\nmethod: dapo\n"


def with_state(*keys: Any, to: Any = None, without: bool = False) -> Callable[[bytes], bytes]:
    """A state.json with another value at a place, or nothing there."""

    def change(data: bytes) -> bytes:
        value = json.loads(data)
        inner = functools.reduce(lambda x, key: x[key], keys[:-1], value)
        if without:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = to
        return json.dumps(value).encode()

    return change


def of_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[bytes], bytes]:
    """A .safetensors file with other tensors."""
    return lambda data: save({k: v.contiguous() for k, v in change(load(data)).items()})


STATE, OTHERS = (
    "checkpoints/000002/state.json",
    {"controller": "checkpoints/000040/state.json", "diffusion": "checkpoints/000002/state.json"},
)
STATES: list[tuple[str, dict[str, Any]]] = [
    *(("language", {STATE: with_state(name, without=True)}) for name in ("loop", "recipe")),
    *(("language", {STATE: with_state("loop", name, without=True)}) for name in ("order", "replayed", "updates")),
    *(("language", {STATE: with_state("loop", name, to=to)}) for name in ("order", "memory", "updates", "steps", "carried") for to in (3.5, None, [1], "x")),
    *(("language", {STATE: with_state("ledger", to=to)}) for to in (3, {"metrics.jsonl": 3}, {"metrics.jsonl": {"rows": "x", "sha256": 1}})),
    *(("language", {STATE: with_state("loop", "memory", "rewards", to=to)}) for to in (None, 3, [None, 0.5, 1], [-4, 0.5, 1], [4, 0.5])),
    *(("language", {"checkpoints/000002/optimiser.safetensors": x}) for x in (of_tensors(lambda x: x | {"policy.0.exp_avg": x["policy.0.exp_avg"].int()}), of_tensors(lambda x: x | {"policy.0.exp_avg": x["policy.0.exp_avg"].flatten()}), of_tensors(lambda x: {k: v for k, v in x.items() if k != "policy.0.exp_avg"}), of_tensors(lambda x: x | {"policy.0.weight": x["policy.0.weight"][:1]}))),
    *((kind, {OTHERS[kind]: with_state("loop", to=to)}) for kind in OTHERS for to in (3, {}, None)),
    *((kind, {OTHERS[kind]: with_state("loop", "steps", to=to)}) for kind in OTHERS for to in (None, "x", 10**400)),
    *((kind, {name: b"[" * 100_000}) for kind, name in (("language", STATE), *OTHERS.items())),
]  # fmt: skip
"""Checkpoints that once gave a traceback."""
LEDGERS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"metrics.jsonl": data}) for kind in ("language", "controller") for data in (b"", b"3\n", b"[]\n", b'{"a": 1}\n', b'{"step": null}\n', b'{"step": 0, "event": "eval", "eval/return": "x"}\n', b"[" * 100_000 + b"\n", b'{"step": ' + b"9" * 5000 + b"}\n")),
    *((kind, {"metrics.jsonl": lambda data: data.replace(b'"step": 0, "', b'"step": 0, "updates": "", "grad_norm": "x", "', 1)}) for kind in sorted(MAKE)),
    ("language", {"timing.jsonl": b"null\n"}), ("language", {"groups.jsonl": b"{}\n"}), ("language", {"samples/step-000000.jsonl": b"3\n"}),
    ("language", {"metrics.jsonl": lambda data: data.split(b"\n", 1)[1]}), ("language", {"metrics.jsonl": lambda data: data.replace(b'"eval/low"', b'"eval/other"')}),
]  # fmt: skip
"""Ledgers and samples that once gave a traceback."""


@given(recipes)
@found(
    *(
        (kind, text)
        for kind in sorted(MAKE)
        for text in (BOMB, CYCLE, DEEP, TWICE, b"", b"\xff", b"x: 2001-99-99", b"? [1]\n: 2\n", b"!!int x")
    )
)
@cases(150)
def test_recipes(place, data):
    kind, written = data
    folder = put(place / "r", kind, {"recipe.yaml": written})
    plans = {
        "language": training.plan_from,
        "controller": control.plan_from,
        "diffusion": diffusion.plan_from,
        "reward": reward_models.plan_from,
    }

    def read() -> None:
        family_of_run(folder)
        with RunDirectory.open(folder, lock=False) as run:
            plans[kind](run.recipe())

    allowed(read)


def with_knob(name: str, value: Any) -> Callable[[bytes], bytes]:
    """A recipe with another knob."""

    def change(data: bytes) -> bytes:
        recipe = yaml.safe_load(data)
        recipe["knobs"][name] = value
        return yaml.safe_dump(recipe).encode()

    return change


def short(case: tuple[str, bytes]) -> bool:
    """Whether the run is over soon: one of many steps, or with many evaluations, would go on, and take its time."""
    try:
        value = yaml_value(case[1].decode())
    except ValueError:
        return True
    numbers = [value.get(k) for k in ("steps", "eval_episodes", "eval_samples")] if isinstance(value, dict) else []
    return not any(isinstance(n, int | float) and 1000 < n < 2**63 for n in numbers)


@given(recipes.filter(short))
@found(*(("diffusion", with_knob(name, -1)) for name in ("weight_decay", "lr")))
@cases(30)
def test_recipes_of_runs_that_go_on(place, data):
    kind, written = data
    allowed(RESUME[kind], put(place / "r", kind, {"recipe.yaml": written}), quiet=True)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[str, dict[str, bytes | None]]:
    """Another state.json, manifest or tensors in the checkpoint of a run."""
    kind = draw(kinds)
    folder, changed = checkpoint_of(kind), dict[str, bytes | None]()
    files = [n for n in runs()[kind] if n.startswith(folder)]
    chances = [f"{folder}/state.json"] * 2 * len(files) + files
    for name in draw(st.lists(st.sampled_from(chances), min_size=1, max_size=2)):
        data = runs()[kind][name]
        how = draw(st.sampled_from(("edited", "edited", "edited", "edited", "broken", "gone")))
        if how == "gone":
            changed[name] = None
        elif how == "broken":
            changed[name] = draw(broken(data))
        elif name.endswith(".json"):
            changed[name] = json.dumps(draw(edited(json.loads(data)))).encode()
        else:
            changed[name] = draw(broken_safetensors(data))
    return kind, changed


@given(checkpoints(), st.booleans())
@cases(150)
def test_checkpoints(place, data, sign):
    kind, changed = data
    folder = put(place / "c", kind, changed)
    if sign and not any(name.endswith("manifest.json") for name in changed):
        signed(folder)
    allowed(load_checkpoint, folder / checkpoint_of(kind))


@given(checkpoints())
@found(*STATES)
@cases(60)
def test_checkpoints_to_go_on_from(place, data):
    kind, changed = data
    folder = put(place / "c", kind, changed)
    if not any(name.endswith("manifest.json") for name in changed):
        signed(folder)
    more = {} if kind == "reward" else {"steps": 40 if kind == "controller" else 3}
    allowed(RESUME[kind], folder, quiet=True, **more)


@given(checkpoints())
@found(*STATES)
@cases(30)
def test_checkpoints_to_evaluate(place, data):
    kind, changed = data
    folder = put(place / "c", kind, changed)
    if not any(name.endswith("manifest.json") for name in changed):
        signed(folder)
    allowed(EVALUATE[kind], folder)


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[str, dict[str, bytes | None]]:
    """Other lines in the ledger, the timing, the groups or the samples of a run."""
    kind = draw(kinds)
    files = [n for n in runs()[kind] if n.endswith(".jsonl") and runs()[kind][n]]
    changed = dict[str, bytes | None]()
    for name in draw(st.lists(st.sampled_from(files), min_size=1, max_size=2)):
        rows = [json.loads(line) for line in runs()[kind][name].splitlines()]
        changed[name] = draw(broken_lines(rows)) if draw(st.integers(0, 9)) else None
    return kind, changed


PAGES = {"language": run_page, "controller": control.page, "diffusion": diffusion.page}


@given(ledgers())
@found(*LEDGERS)
@cases(120)
def test_ledgers(place, data):
    kind, changed = data
    folder = put(place / "l", kind, changed)

    def read() -> None:
        with RunDirectory.open(folder) as run:
            run.read()
            run.truncate_to(Position(1, 1))

    allowed(read)


@given(ledgers())
@found(*LEDGERS)
@cases(40)
def test_ledgers_of_runs_that_go_on(place, data):
    kind, changed = data
    folder = put(place / "l", kind, changed)

    def go_on() -> None:
        run = RESUME[kind](folder, quiet=True)
        if kind in PAGES:
            PAGES[kind](run)

    allowed(go_on)


@given(
    st.lists(
        st.tuples(st.sampled_from(("grpo", "rloo")), st.integers(0, 1), ledgers().filter(lambda x: x[0] == "language")),
        min_size=1,
        max_size=2,
    )
)
@found(changes=[("rloo", 1, LEDGERS[-2])])
@found(changes=[("grpo", 0, ("language", {"metrics.jsonl": lambda data: data.replace(b'"step": 1', b'"step": "x"')}))])
@cases(20)
def test_ledgers_of_a_comparison(place, changes):
    out = place / "compare"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(compared(), out)
    for arm, seed, (_, changed) in changes:
        for name, data in changed.items():
            file = out / arm / f"seed-{seed}" / name
            if data is not None:
                file.write_bytes(data(file.read_bytes()) if callable(data) else data)
    allowed(ap.compare, ["grpo", "rloo"], out=out, **COMPARED)


COMPARED: dict[str, Any] = {
    "task": "tabular-lock:prompts=4,length=2",
    "seeds": 2,
    "steps": 2,
    "prompts": 2,
    "group_size": 2,
    "eval_every": 1,
    **TINY,
}


@functools.cache
def compared() -> Path:
    out = Path(tempfile.mkdtemp(prefix="anypolicy-fuzz-")) / "compare"
    ap.compare(["grpo", "rloo"], out=out, **COMPARED)
    return out


CLAIM = """
from anypolicy.evidence.checks import Check
CLAIM, SEEDS, ARMS = "one is one", 2, ("a",)
def run(arm, seed): return {"x": 1.0 + seed, "curve": [[0, 1.0], [1, 2.0]]}
CHECKS = [Check("x", "> 0", lambda r: r["a"]["x"], above=0.0)]
"""


@functools.cache
def kept() -> bytes:
    """What a claim keeps of its finished runs."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "claim.py").write_text(CLAIM)
        run_claim(Path(work) / "claim.py", out=Path(work), quiet=True, trust=True)
        return (Path(work) / ".claim.runs.json").read_bytes()


@given(st.deferred(lambda: edited(json.loads(kept())).map(lambda v: json.dumps(v).encode()) | broken(kept())))
@found(b"", b"\xff", b"null", b"[]", b"{", b"{}")
@cases(60)
def test_kept_runs_of_a_claim(place, data):
    (place / "claim.py").write_text(CLAIM)
    (place / ".claim.runs.json").write_bytes(data)
    allowed(run_claim, place / "claim.py", out=place, quiet=True, trust=True)


@given(checkpoints().filter(lambda x: x[0] == "controller"))
@found(("controller", {"checkpoints/000040/replay.safetensors": lambda data: safetensors_of({}, b"")}))
@cases(20)
def test_replays_to_inspect(place, data):
    kind, changed = data
    folder = put(place / "i", kind, changed)
    if not any(name.endswith("manifest.json") for name in changed):
        signed(folder)
    allowed(
        inspect, [str(folder)], reference=str(folder), g_max=50.0, g_min=1.0, figure=place / "plane.png", quiet=True
    )


@pytest.mark.parametrize("name", ["", ".", "..", "/", "nothing", "\0", "a" * 5000, "/dev/null", "/proc/self/mem"])
@pytest.mark.parametrize("call", [*RESUME.values(), *EVALUATE.values(), family_of_run])
def test_places_where_no_run_is(name, call):
    allowed(call, name)
