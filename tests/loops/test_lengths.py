"""Prompts that do not fit: refused before the first step, dropped, or cut to their last tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from anypolicy.compose import compose
from anypolicy.data.records import Prompt
from anypolicy.engines.base import Sampling
from anypolicy.engines.of_policy import engine_for
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.families import reward_models
from anypolicy.loops.reward_model import fit_pairs
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.stages.lengths import check_lengths, fit_prompts
from anypolicy.stages.recipe import World
from anypolicy.stages.recorded import RecordedReward, RecordedRollout
from anypolicy.tasks.language.load import load_task

SMALL = "transformer:layers=1,width=16,heads=2,context=64"
RUN = {"policy": SMALL, "prompts": 2, "trackers": (), "quiet": True, "steps": 2, "max_tokens": 16}
FITS = 64 - 16
"""Bytes of the longest question that fits."""


def write(path, *rows):
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return str(path)


def questions(path, long=(1, 6), **more):
    """Ten questions of which some are one byte too long."""
    rows = [{"prompt": str(i) * (FITS + (i in long)), "answer": "a", **more} for i in range(10)]
    return write(path, *rows)


def world_of(task, policy=None, **sampling):
    policy = policy or load_policy(SMALL)
    return World(policy, engine_for(policy), task, Sampling(16, **sampling), 0)


def fit(method, task, long="refuse", reference=None, world=None):
    return fit_prompts(compose(method).recipe, world or world_of(task), 2, reference, long)


@pytest.mark.parametrize("side", ["train", "heldout"])
def test_one_prompt_too_many_is_refused_before_there_is_a_run(tmp_path, side):
    def longest(i):
        task = load_task(questions(tmp_path / "x.jsonl", (i,)))
        return max(len(p.messages[0]["content"]) for p in getattr(task, side))

    i = next(i for i in range(10) if longest(i) > FITS)
    with pytest.raises(InputError, match="use --long-prompts drop or truncate-left") as error:
        training.train("grpo", task=str(tmp_path / "x.jsonl"), out=tmp_path / "run", **RUN)
    assert "it has 49 tokens, the policy holds 64 and its response takes up to 16 of them" in str(error.value)
    assert str(i) * 20 in str(error.value)
    assert not (tmp_path / "run").exists()
    assert training.train("grpo", task=questions(tmp_path / "y.jsonl", ()), out=tmp_path / "run", **RUN).rows


@pytest.mark.parametrize("long", ["drop", "truncate-left"])
def test_dropped_or_cut_prompts_are_counted_and_the_run_ends_and_goes_on(tmp_path, capsys, long):
    loaded = load_task(task := questions(tmp_path / "x.jsonl") + ":heldout=0.5")
    run = training.train("grpo", task=task, out=tmp_path / "run", long_prompts=long, **RUN)
    sides = {name: sum(len(p.messages[0]["content"]) > FITS for p in getattr(loaded, name))
             for name in ("train", "heldout")}  # fmt: skip
    assert all(sides.values())
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["prompts_changed"] == sides
    assert f"{sides['train']} of {len(loaded.train)} training prompts" in capsys.readouterr().err
    n = len(loaded.heldout) - (sides["heldout"] if long == "drop" else 0)
    assert {r["eval/n"] for r in run.evaluations()} == {n}
    assert training.resume(tmp_path / "run", steps=3, quiet=True).rows[-1]["step"] == 3


def test_what_is_cut_is_the_end_of_the_prompt(tmp_path):
    task = load_task(questions(tmp_path / "x.jsonl"))
    world, counts = fit("grpo", task, "truncate-left")
    whole, cut = (sorted(t.train + t.heldout, key=lambda p: p.id) for t in (task, world.task))
    changed = [(a, b) for a, b in zip(whole, cut, strict=True) if a is not b]
    assert len(changed) == sum(counts.values()) == 2
    for before, after in changed:
        a, b = world.policy.encode(before), world.policy.encode(after)
        assert len(b) == 48 and np.array_equal(a[-48:], b)
        assert after.without_label().keep == 48


def test_a_task_that_fits_is_left_as_it_is(tmp_path):
    world = world_of(load_task(questions(tmp_path / "x.jsonl", ())))
    assert fit("grpo", world.task, world=world) == (world, {})


def test_references_and_recorded_responses_count_where_they_are_learnt(tmp_path):
    rows = [{"prompt": str(i) * 20, "response": "b" * (44 if i == 7 else 5)} for i in range(8)]
    task = load_task(write(tmp_path / "x.jsonl", *rows) + ":heldout=0.2")
    task.train, task.heldout = [*task.train, *task.heldout], []
    with pytest.raises(InputError, match="takes up to 45 of them; 1 of 8"):
        fit("sft", task)
    assert len(fit("sft", task, "drop")[0].task.train) == 7
    assert fit("grpo", task)[1] == {}
    task.train, task.heldout = (
        [p for p in task.train if len(p.reference) == 5],
        [p for p in task.train if len(p.reference) > 5],
    )
    with pytest.raises(InputError, match=r"0 of 7 training prompts and 1 of 1 held out"):
        fit("grpo", task)
    pairs = [{"prompt": str(i) * 20, "chosen": "a", "rejected": "b" * (44 if i == 7 else 5)} for i in range(8)]
    with pytest.raises(InputError, match=" 1 of"):
        fit("dpo", load_task(write(tmp_path / "pairs.jsonl", *pairs)), reference=load_policy(SMALL))
    lists = [{"prompt": str(i) * 60, "responses": ["a", "bc"], "scores": [0, 1]} for i in range(8)]
    recorded = replace(compose("copg").recipe, rollout=RecordedRollout(), reward=RecordedReward())
    world = world_of(load_task(write(tmp_path / "lists.jsonl", *lists) + ":verifier=none"))
    assert fit_prompts(recorded, world, 2, None, "refuse") == (world, {})


def test_the_reference_and_the_reward_model_may_hold_less_than_the_policy(tmp_path):
    task = load_task(questions(tmp_path / "x.jsonl", ()))
    with pytest.raises(InputError, match="the policy holds 60"):
        fit("grpo", task, reference=load_policy(SMALL.replace("64", "60")))
    judge = RewardModel.from_policy(load_policy(SMALL.replace("64", "60")), 0)
    with pytest.raises(InputError, match="the reward model holds 60"):
        fit("grpo", task, world=replace(world_of(task), reward_function=judge))
    with pytest.raises(InputError, match="nothing would be left"):
        fit("grpo", task, "truncate-left", world=replace(world_of(task), reward_function=judge))


def test_a_prompt_that_cannot_be_said_is_refused_whatever_is_done_with_long_ones(tmp_path):
    task = load_task(questions(tmp_path / "x.jsonl"))
    task.train = [Prompt("p", ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))]
    for long in ("refuse", "drop"):
        with pytest.raises(InputError, match="its last message is the assistant's"):
            fit("grpo", task, long)


def test_prompts_that_show_images_are_dropped_but_not_cut(tmp_path):
    policy = load_policy("vlm:layers=1,width=16,heads=2,context=64,image=16,patch=8")
    task = load_task(questions(tmp_path / "x.jsonl", range(10)))
    picture = {"images": (np.zeros((16, 16, 3), np.uint8),)}
    first, second, *_ = task.train
    task.train = [replace(first, media=picture), replace(second, messages=({"role": "user", "content": "a"},))]
    task.heldout = []
    assert fit("grpo", task, "drop", world=world_of(task, policy))[0].task.train == [task.train[1]]
    with pytest.raises(InputError, match="it shows images"):
        fit("grpo", task, "truncate-left", world=world_of(task, policy))


def test_nothing_left_and_streams_are_refused(tmp_path):
    with pytest.raises(InputError, match="nothing is left to train on"):
        fit("grpo", load_task(questions(tmp_path / "x.jsonl", range(10))), "drop")
    groups = [{"step": i, "context": [5] * (60 + i), "responses": [[6], [7]], "scores": [0, 1]} for i in range(4)]
    stream = load_task(write(tmp_path / "groups.jsonl", *groups))
    with pytest.raises(InputError, match="a recorded stream is learnt group by group"):
        fit("copg", stream, "drop", reference=load_policy(SMALL))


def test_answers_for_an_expert_are_measured_too(tmp_path):
    world = world_of(load_task(questions(tmp_path / "x.jsonl", range(10))))
    with pytest.raises(InputError, match="shorten these 3 prompts"):
        check_lengths(world, world.task.train[:3])


def pair(i, n):
    return {"prompt": f"{i}?", "chosen": "a" * n, "rejected": "b"}


@pytest.mark.parametrize("long", ["refuse", "drop", "truncate-left"])
def test_pairs_of_a_reward_model(tmp_path, capsys, long):
    pairs = write(tmp_path / "p.jsonl", *(pair(i, 80 if i in (2, 5) else 3) for i in range(12)))
    given = {"policy": SMALL, "trackers": (), "quiet": True, "out": tmp_path / "run", "heldout": 0.5}
    if long == "refuse":
        with pytest.raises(InputError, match="--long-prompts"):
            reward_models.train_reward_model("bradley-terry", pairs=pairs, **given)
        assert not (tmp_path / "run").exists()
        return
    run = reward_models.train_reward_model("bradley-terry", pairs=pairs, long_prompts=long, **given)
    counts = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["prompts_changed"]
    assert sum(counts.values()) == 2 and "more tokens than the model holds (64)" in capsys.readouterr().err
    _, held = reward_models.load_pairs(pairs, heldout=0.5)
    shown = len(held) - (counts["heldout"] if long == "drop" else 0)
    assert {r["eval/n"] for r in run.rows if r.get("event") == "eval"} == {shown}
    assert reward_models.evaluate(tmp_path / "run")["eval/n"] == shown
    assert reward_models.resume(tmp_path / "run", quiet=True).rows == run.rows
    assert torch.isfinite(torch.tensor(run.model.calibration)).all()


def test_a_pair_that_just_fits_is_kept(tmp_path):
    """The model holds 64 tokens; a byte more does not fit."""
    model = RewardModel.from_policy(load_policy(SMALL), 0)
    pairs, _ = reward_models.load_pairs(
        write(tmp_path / "p.jsonl", *(pair(i, n) for i, n in enumerate(range(40, 70)))), heldout=0.1
    )
    longest = {id(p): max(len(model.encode(p.prompt, x)) for x in (p.chosen, p.rejected)) for p in pairs}
    kept, _, counts = fit_pairs(model, pairs, [], "drop")
    assert {longest[id(p)] for p in kept} == {n for n in longest.values() if n <= 64} and 64 in longest.values()
    assert counts == {"train": sum(n > 64 for n in longest.values()), "heldout": 0}
