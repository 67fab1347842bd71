"""A sixth family, made outside the package: a number is fitted by gradient steps, with checkpoints and all."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import anypolicy as ap
from anypolicy import catalogue
from anypolicy.cli.app import main
from anypolicy.errors import InputError, check_numbers, checked, settled
from anypolicy.evidence.report import Text, write_report
from anypolicy.families import base
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.drive import Schedule, drive
from anypolicy.runs.recipes import checkpoint_of, keep, made_checkpoint, put_back, recipe_of, rewind, stated
from anypolicy.tasks.arguments import parse


@dataclass(frozen=True)
class FitSettings:
    """What fitting a number needs beside its method."""

    family: ClassVar[str] = "number"
    task: str
    """`target:at=3`"""
    steps: int = 20
    """gradient steps"""
    seed: int = 0
    """where the number begins"""
    out: Path | None = None
    """run directory"""


@dataclass
class FitRun:
    path: Path
    rows: list[dict[str, Any]]
    number: float
    seconds: float = 0.0


@dataclass
class FitPlan:
    method: str
    knobs: dict[str, Any]
    settings: FitSettings
    lr: float
    target: float

    def written(self):
        return recipe_of(self.method, self.knobs, self.settings)


class Fit:
    """x ← x − lr · d/dx (x − target)²."""

    def __init__(self, p):
        self.p, self.steps = p, 0
        self.x = torch.randn(1, generator=torch.Generator().manual_seed(p.settings.seed), dtype=torch.float64)

    def step(self):
        self.x, self.steps = self.x - self.p.lr * 2 * (self.x - self.p.target), self.steps + 1
        return {"loss": float((self.x - self.p.target).square())}

    def evaluate(self):
        return {"eval/score": -float((self.x - self.p.target).abs())}


def plan(method, settings, knobs=None):
    settings = settled(settings)
    check_numbers(settings, positive=("steps",))
    name, _, given = settings.task.partition(":")
    if name != "target":
        raise InputError("task", settings.task, "use target:at=NUMBER")
    lr = catalogue.build(catalogue.get(method, "number"), dict(knobs or {}))
    return FitPlan(method, dict(knobs or {}), settings, lr, float(parse(given)["at"]))


def go(p, run, fit, *, quiet):
    began = time.monotonic()
    saved = checkpoint_of(run, p.written())
    if saved:
        with put_back(saved, {"steps": 0}) as (state, tensors):
            fit.steps, fit.x = state["steps"], tensors["fit"]["x"]
    first = rewind(run, saved, p.written(), p.settings.steps)
    drive(run, Schedule(p.settings.steps, 10, 5), first, title=p.method, trackers=(), written=p.written(), quiet=quiet,
          learn=lambda _n, _pause: fit.step(), evaluate=lambda _: fit.evaluate(),
          save=lambda at: keep(run, at, {"fit": {"x": fit.x}}, {"steps": fit.steps}, p.written()))  # fmt: skip
    return FitRun(run.path, run.read(), float(fit.x), time.monotonic() - began)


def load(path, *, device=None, trust=False):
    with RunDirectory.open(path, lock=False) as run, put_back(made_checkpoint(run, run.recipe())) as (_, tensors):
        return FitRun(run.path, run.read(), float(tensors["fit"]["x"]))


@checked
def evaluate(path: str | Path, *, digits: int = 6, trust: bool = False) -> dict[str, float]:
    with RunDirectory.open(path, lock=False) as run:
        p = NUMBER.plan_from(stated(run), trust=trust)
        fit = Fit(p)
        with put_back(made_checkpoint(run, p.written())) as (_, tensors):
            fit.x = tensors["fit"]["x"]
        return {k: round(v, digits) for k, v in fit.evaluate().items()}


NUMBER = base.Family(
    settings=FitSettings, plan=plan, folder=lambda p: f"{p.method}-{p.settings.seed}", begin=lambda p: (p, Fit(p)),
    go=go, load=load, evaluate=evaluate, explain=lambda p: f"{p.method} goes to {p.target} in {p.settings.steps} steps",
    summary=lambda run, where: f"ended at {run.number:.3f}; report {where}",
    page=lambda run: write_report(run.path / "report.html", "a number", [Text([f"{run.number}"])]),
    metrics=lambda _: ("eval/score",),
)  # fmt: skip
FILE = '''
"""Descent: a method of a family from outside."""
from anypolicy.catalogue import Card, method

def card(title):
    return Card(title=title, paper="p", year=2026, family="number", idea="i", changes=(), composes_with="c", claim="c")

@method(card("descent"))
def descent(lr: float = 0.1):
    """Plain."""
    return lr

@method(card("slow"))
def slow(lr: float = 0.01):
    """Slower."""
    return lr
'''


@pytest.fixture
def number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "descent.py").write_text(FILE)
    catalogue.load_file("descent.py", trust=True)
    base.register(NUMBER)
    yield NUMBER
    del base.REGISTERED["number"]
    for slug in ("descent", "slow"):
        del catalogue.REGISTERED[slug]


def test_from_python(number, tmp_path):
    whole = ap.train("descent", task="target:at=3", steps=20, out=tmp_path / "whole", quiet=True)
    ap.train("descent", task="target:at=3", steps=10, out=tmp_path / "half", quiet=True)
    longer = ap.resume(tmp_path / "half", steps=20, quiet=True)
    assert whole.number == longer.number and whole.number == pytest.approx(3, abs=0.1)
    assert ap.evaluate(tmp_path / "whole", digits=2)["eval/score"] == round(-abs(whole.number - 3), 2)
    assert "goes to 3.0 in 20 steps" in ap.explain("descent", task="target:at=3")
    study = ap.compare(["descent", "slow"], task="target:at=3", seeds=3, out=tmp_path / "study", quiet=True)
    assert study.metric == "eval/score" and "descent" in str(study) and "20 steps" in str(study)
    with pytest.raises(InputError, match="an evaluation of the number family takes digits"):
        ap.evaluate(tmp_path / "whole", episodes=2)
    with pytest.raises(InputError, match="task: got None; say what descent learns from"):
        ap.train("descent")
    with pytest.raises(InputError, match="task: got None; say what descent learns from"):
        ap.explain("descent")
    with pytest.raises(InputError, match="stps"):
        ap.train("descent", task="target:at=3", stps=3)


def test_from_the_command_line(number, tmp_path, capsys):
    assert main(["train", "descent", "--task", "target:at=1", "--descent.lr", "0.3", "--out", "run"]) == 0
    assert "ended at 1.000" in capsys.readouterr().out and (tmp_path / "run" / "report.html").exists()
    assert main(["eval", "run"]) == 0
    assert json.loads(capsys.readouterr().out)["eval/score"] == pytest.approx(0, abs=1e-4)
    assert main(["resume", "run", "--steps", "30"]) == 0
    assert main(["explain", "descent", "--task", "target:at=2"]) == 0
    assert "goes to 2.0" in capsys.readouterr().out
    assert main(["eval", "run", "--episodes", "3"]) == 2
    assert "an evaluation of the number family takes digits" in capsys.readouterr().err
    assert main(["eval", "run", "--digits", "0"]) == 0
    assert json.loads(capsys.readouterr().out) == {"eval/score": 0}
    assert main(["compare", "descent", "slow", "--task", "target:at=2", "--seeds", "2", "--out", "study"]) == 0
    assert "eval/score on target:at=2, 2 seeds" in capsys.readouterr().out
    assert main(["eval", "--help"]) == 0
    assert "--digits" in capsys.readouterr().out


def test_what_can_be_compared_is_of_one_family(number, tmp_path):
    with pytest.raises(InputError, match="descent is of number, grpo is of language"):
        ap.compare(["descent", "grpo"], task="target:at=2", seeds=2)
    with pytest.raises(InputError, match="task: got None; say what descent learns from"):
        ap.compare(["descent", "slow"], seeds=2)


def test_a_method_of_no_family_is_refused(number, tmp_path):
    (tmp_path / "other.py").write_text(FILE.replace("number", "langauge").replace("descent", "ascent").replace(
        "slow", "slower"))  # fmt: skip
    try:
        with pytest.raises(InputError, match=r"family: got 'langauge'; .*did you mean 'language'"):
            ap.train("ascent", task="tiny-add", method_file=("other.py",))
    finally:
        for slug in ("ascent", "slower"):
            del catalogue.REGISTERED[slug]


def test_a_name_is_given_once(number):
    base.register(NUMBER)
    with pytest.raises(InputError, match="choose another"):
        base.register(replace(NUMBER, composes=True))


def test_a_run_without_its_family_is_not_read(tmp_path):
    run = ap.train("grpo", task="tabular-lock", steps=1, out=tmp_path / "run", trackers=(), quiet=True)
    recipe = run.path / "recipe.yaml"
    text = recipe.read_text()
    assert "family: language" in text
    for other in ("", "family: poetry", "family: [1]"):
        recipe.write_text(text.replace("family: language", other))
        with pytest.raises(InputError, match=r"recipe\.yaml: family"):
            ap.resume(run.path)
    recipe.write_text(text.replace("family: language", "family: control"))
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        ap.resume(run.path)
