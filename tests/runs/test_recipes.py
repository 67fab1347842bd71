"""A run's recipe: written and read back, compared before the run goes on, the ledger cut to where it does."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml

from anypolicy.errors import InputError
from anypolicy.families import control, diffusion, reward_models
from anypolicy.families import language as training
from anypolicy.families.base import evaluate
from anypolicy.runs.checkpoint import Position, load_checkpoint, save_checkpoint
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.recipes import (
    checkpoint_of,
    comparable,
    differences,
    keep,
    made_checkpoint,
    plain,
    recipe_of,
    rewind,
    settings_from,
)
from anypolicy.studies.compare import compare


@dataclass(frozen=True)
class Settings:
    family: ClassVar[str] = "lock"
    task: str
    lr: float = 0.1
    steps: int = 10
    out: Path | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    method_file: tuple[Path, ...] = ()


GIVEN = Settings("lock", out=Path("here"), method_file=(Path("mine.py"),))


def save(run: RunDirectory, step: int, written: dict) -> None:
    keep(run, Position(step, step), {"x": {"a": torch.zeros(1)}}, {"steps": step}, written)


def test_what_is_written_gives_the_settings_again():
    written = recipe_of("grpo", {"group_size": 4}, GIVEN)
    assert written == {"family": "lock", "method": "grpo", "knobs": {"group_size": 4}, "task": "lock", "lr": 0.1, "steps": 10,
                       "trackers": ["tensorboard"], "method_file": ["mine.py"]}  # fmt: skip
    assert settings_from(Settings, written) == (
        "grpo",
        {"group_size": 4},
        Settings("lock", method_file=(Path("mine.py"),)),
    )


@pytest.mark.parametrize("wrong", [{"method": None}, {"unknown": 1}, {"trackers": None}])
def test_what_describes_no_run_is_refused(wrong):
    written = recipe_of("grpo", {}, GIVEN) | wrong
    if wrong == {"method": None}:
        del written["method"]
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        settings_from(Settings, written)


def test_settings_of_evaluations_are_free_except_where_runs_are_compared():
    written = {"task": "t", "steps": 3, "eval_of_any_family": 4, "digests": {}}
    assert comparable(written) == {"task": "t"}
    assert comparable(written, evaluation=True) == {"task": "t", "eval_of_any_family": 4}


def test_differences_name_the_fields():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 2 → 3", "c: None → 4"]


def test_only_what_decides_the_numbers_must_stay(tmp_path):
    written = recipe_of("grpo", {"clip": (0.1, 0.2)}, GIVEN)
    with RunDirectory.create(tmp_path / "run", written) as run:
        assert checkpoint_of(run, written) is None
        with pytest.raises(InputError, match="no checkpoint yet"):
            made_checkpoint(run, written)
        save(run, 4, written)
        longer = written | {"steps": 20, "trackers": [], "eval_every": 3}
        assert made_checkpoint(run, longer).step == 4
        with pytest.raises(InputError, match=r"lr: 0\.1 → 0\.5"):
            checkpoint_of(run, written | {"lr": 0.5})


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory):
    """A finished run of every family."""
    work, settings = tmp_path_factory.mktemp("runs"), {"trackers": (), "quiet": True, "checkpoint_every": 1}
    pairs = work / "pairs.jsonl"
    pairs.write_text("".join(f'{{"prompt": "q{i}", "chosen": "yes", "rejected": "no"}}\n' for i in range(4)))
    knobs = {"hidden": (4,), "warmup": 4, "batch": 2}
    training.train("grpo", task="tabular-lock", steps=1, out=work / "language", **settings)
    control.train_controller(
        "dqn", task="gym/CartPole-v1", steps=8, eval_episodes=1, out=work / "control", knobs=knobs, **settings
    )
    diffusion.train_diffusion(
        "diffusion-sft", task="ring8", policy="fresh", steps=1, eval_samples=8, out=work / "diffusion",
        knobs={"batch": 4}, **settings,
    )  # fmt: skip
    reward_models.train_reward_model(
        "bradley-terry", pairs=pairs, policy="transformer:layers=1,width=8,heads=2,context=64", out=work / "reward model",
        **settings,
    )  # fmt: skip
    return work


OPEN = {
    "language": (training.resume, evaluate), "control": (control.resume, control.evaluate_run),
    "diffusion": (diffusion.resume, diffusion.evaluate_run),
    "reward model": (reward_models.resume, reward_models.evaluate),
}  # fmt: skip


@pytest.mark.parametrize("family", OPEN)
@pytest.mark.parametrize(
    "changed",
    [{"task": "tiny-add", "pairs": "others.jsonl"}, {"seed": 7}, {"knobs": {"hidden": (5,)}}, {"method": "rloo"}],
    ids=lambda x: next(iter(x)),
)
def test_a_recipe_that_says_something_else_than_its_checkpoint_is_refused_before_all_else(small_runs, family, changed):
    """Nothing is made by it: another task may not even fit the policy."""
    recipe = small_runs / family / "recipe.yaml"
    before = recipe.read_text()
    written = yaml.safe_load(before)
    changed = plain({k: v for k, v in changed.items() if k in written})
    recipe.write_text(yaml.safe_dump(written | changed))
    name = "task|pairs" if {"task", "pairs"} & changed.keys() else next(iter(changed))
    try:
        for call in OPEN[family]:
            with pytest.raises(
                InputError, match=rf"recipe\.yaml: got ['\"]({name}): .* → .*was made with other settings"
            ):
                call(small_runs / family)
    finally:
        recipe.write_text(before)


def test_what_is_only_seen_may_change_when_a_run_goes_on(small_runs):
    recipe = small_runs / "language" / "recipe.yaml"
    before = recipe.read_text()
    changed = {"eval_prompts": 3, "eval_every": 1, "trackers": [], "checkpoint_minutes": 0.0, "steps": 2}
    recipe.write_text(yaml.safe_dump(yaml.safe_load(before) | changed))
    assert [r["step"] for r in training.resume(small_runs / "language", quiet=True).rows][-1] == 2
    recipe.write_text(before)


def test_a_comparison_does_not_take_runs_that_were_evaluated_otherwise(tmp_path):
    given = {"task": "tabular-lock", "steps": 1, "seeds": 2, "trackers": (), "quiet": True}
    given["out"] = tmp_path
    compare(["grpo", "rloo"], eval_prompts=4, **given)
    with pytest.raises(InputError, match=r"other settings is there \(eval_prompts: 4 → 5\)"):
        compare(["grpo", "rloo"], eval_prompts=5, **given)


def test_the_ledger_is_cut_and_the_recipe_renewed(tmp_path):
    written = recipe_of("grpo", {}, GIVEN)
    with RunDirectory.create(tmp_path / "run", written) as run:
        for step in range(6):
            run.append({"step": step})
        save(run, 4, written)
        saved = made_checkpoint(run, written)
        with pytest.raises(InputError, match="4 steps already"):
            rewind(run, saved, written | {"steps": 3}, 3)
        assert len(run.read()) == 6 and run.recipe() == written
        assert rewind(run, saved, written | {"steps": 20}, 20) == Position(4, 4)
        assert [row["step"] for row in run.read()] == [0, 1, 2, 3] and run.recipe()["steps"] == 20
        assert rewind(run, None, written, 10) == Position(0, 0)
        assert run.read() == []


def saved_run(folder: Path, rows: int = 6, at: int = 4) -> RunDirectory:
    """A run with a ledger and a checkpoint."""
    run = RunDirectory.create(folder, recipe_of("grpo", {}, GIVEN))
    run.append({"step": 0, "event": "eval"})
    for step in range(at):
        run.append({"step": step, "x": step / 3})
        run.append_timing({"step": step, "seconds": 0.1})
    save(run, at, run.recipe())
    for step in range(at, rows):
        run.append({"step": step, "x": step / 3})
    return run


LACKS = "metrics.jsonl lacks"


@pytest.mark.parametrize(
    ("damage", "says"),
    [(lambda rows: None, f"{LACKS} the rows of steps 0–3 (5 of 5 rows)"),
     (lambda rows: rows[2:], f"{LACKS} the rows of steps 0 (2 of 5 rows)"),
     (lambda rows: rows[:3], f"{LACKS} the rows of steps 2–3 (2 of 5 rows)"),
     (lambda rows: rows[:2] + rows[3:4], f"{LACKS} the rows of steps 1, 3 (2 of 5 rows)"),
     (lambda rows: rows[1:], f"{LACKS} 1 of 5 rows (of evaluations)"),
     (lambda rows: rows[:2] + rows[:1] + rows[3:], f"{LACKS} the rows of steps 1 and has others"),
     (lambda rows: [rows[0], rows[1].replace("0.0", "9.0"), *rows[2:]], "has rows that are not as they were written")],
    ids=["deleted", "its head lost", "its tail lost", "here and there", "an evaluation lost", "one twice",
         "a number changed"],
)  # fmt: skip
def test_rows_lost_before_the_checkpoint_are_named_and_entered(tmp_path, capsys, damage, says):
    with saved_run(tmp_path / "run") as run:
        ledger = run.path / "metrics.jsonl"
        rows = ledger.read_text().splitlines(keepends=True)[:5]
        left = damage(rows)
        ledger.unlink() if left is None else ledger.write_text("".join(left))
        rewind(run, made_checkpoint(run, run.recipe()), run.recipe(), 10)
        assert f"{says}, before step 4; the run goes on" in capsys.readouterr().err
        *kept, event = run.read()
        assert kept == [json.loads(row) for row in left or []] and event["event"] == "lost" and says in event["why"]


def test_where_nobody_knows_which_rows_are_lost_their_number_is_said(tmp_path, capsys):
    with saved_run(tmp_path / "run") as run:
        for name in ("metrics.jsonl", "timing.jsonl"):
            (run.path / name).unlink()
        rewind(run, made_checkpoint(run, run.recipe()), run.recipe(), 10)
        assert f"{LACKS} 5 of 5 rows, before step 4" in capsys.readouterr().err


def test_a_row_that_was_open_is_not_kept_where_others_are_lost(tmp_path):
    """It will be written again."""
    written = recipe_of("grpo", {}, GIVEN)
    with RunDirectory.create(tmp_path / "run", written) as run:
        for row in ({"step": 0}, {"step": 2, "event": "eval"}):
            run.append(row)
        keep(run, Position(3, 2), {}, {}, written)
        (run.path / "metrics.jsonl").write_text('{"step": 2, "event": "eval"}\n{"step": 2, "x": 1.0}\n')
        rewind(run, made_checkpoint(run, written), written, 10)
        assert [(r["step"], r.get("event")) for r in run.read()] == [(2, "eval"), (3, "lost")]


def test_a_ledger_as_it_was_is_no_news(tmp_path, capsys):
    with saved_run(tmp_path / "run") as run:
        rewind(run, made_checkpoint(run, run.recipe()), run.recipe(), 10)
        assert capsys.readouterr().err == "" and [row["step"] for row in run.read()] == [0, 0, 1, 2, 3]


def test_a_row_that_was_open_at_the_checkpoint_is_written_once(tmp_path):
    """Its row and the evaluation before it have the same step: neither is lost or doubled, however often it resumes."""
    written = recipe_of("grpo", {}, GIVEN)
    with RunDirectory.create(tmp_path / "run", written) as run:
        before = [{"step": 0}, {"step": 2, "event": "eval"}]
        for row in before:
            run.append(row)
        keep(run, Position(3, 2), {}, {}, written)
        for _ in range(2):
            run.append({"step": 2, "x": 1.0})
            assert rewind(run, made_checkpoint(run, written), written, 10) == Position(3, 2)
            assert run.read() == before


@pytest.mark.parametrize(
    "state",
    [{}, {"recipe": {}}, {"loop": {}}, {"recipe": {}, "loop": []}, {"recipe": 1, "loop": {}},
     {"recipe": {}, "loop": {}, "ledger": {"metrics.jsonl": 3}}, {"recipe": {}, "loop": {}, "began": "x"}],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_that_holds_no_run_is_refused(tmp_path, state):
    written = recipe_of("grpo", {}, GIVEN)
    with RunDirectory.create(tmp_path / "run", written) as run:
        save_checkpoint(run.path, 4, {}, state)
        with pytest.raises(InputError, match="holds no run"):
            checkpoint_of(run, written)


def test_a_checkpoint_without_the_state_of_its_method_is_refused(tmp_path):
    run = training.train("grpo", task="tabular-lock", steps=2, out=tmp_path / "run", trackers=(), quiet=True).path
    saved = load_checkpoint(run / "checkpoints" / "000002")
    for broken in ({}, {"steps": 2}, {**saved.state["loop"], "order": 3}):
        save_checkpoint(run, 2, saved.tensors, saved.state | {"loop": broken})
        with pytest.raises(InputError, match=r"checkpoint: .*the state of this run"):
            training.resume(run, quiet=True)


FAMILIES = {
    "language": training.Settings("tabular-lock"),
    "control": control.ControlSettings("gym/Pendulum-v1"),
    "diffusion": diffusion.DiffusionSettings("ring8"),
    "reward model": reward_models.RewardSettings("pairs.jsonl"),
}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("steps", "16", "a whole number"), ("seed", True, "a whole number"), ("trackers", "tensorboard", "a list"),
     ("trackers", [1], "a list"), ("checkpoint_minutes", float("nan"), "finite"), ("threads", 1.5, "a whole number")],
)  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_with_a_value_of_another_type_is_refused(family, field, value, says):
    settings = FAMILIES[family]
    if not hasattr(settings, field):
        pytest.skip("a reward model has epochs")
    with pytest.raises(InputError, match=rf"recipe\.yaml: {field}: .*{says}"):
        settings_from(type(settings), recipe_of("m", {}, settings) | {field: value})


def test_knobs_of_a_recipe_are_checked_too(tmp_path):
    run = training.train("ngrpo", task="tabular-lock", steps=1, out=tmp_path / "run", trackers=(), quiet=True).path
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    shutil.rmtree(run / "checkpoints")  # with one, they are no longer its own
    for knobs, says in (({"ngrpo": {"group_size": "4"}}, "a whole number"), ({"ngrpo": 4}, "by name"), (3, "by name")):
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"knobs": knobs}))
        with pytest.raises(InputError, match=says):
            training.resume(run, steps=2, quiet=True)
