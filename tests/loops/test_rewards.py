"""A user's own rewards: names, weights, fields of the row, abstaining, async functions, and one error for all else; prompts
without answers are learnt from by them and evaluated by them."""

import asyncio
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import yaml

import anypolicy as ap
from anypolicy.compose import compose
from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.families import language
from anypolicy.runs import trust
from anypolicy.runs.digests import digests_of
from anypolicy.stages.rewards import OwnReward, OwnRewards
from anypolicy.studies.filtration import collect_scores
from tests.helpers import lock_loop

PROMPT = Prompt("p", info={"topic": "cats", "level": 3}, answer="7", reference="seven")
MINE = '''"""Two rewards and a third that is broken."""
import asyncio

def short(prompt, responses):
    return [-len(r) / 100 for r in responses]

async def named(prompt, responses, level, answer=None, **fields):
    await asyncio.sleep(0)
    return [None if len(r) % 2 else float(level) for r in responses]

def broken(prompt, responses):
    return [1 / 0 for r in responses]
'''


@pytest.fixture
def mine(tmp_path):
    """A file of rewards, and one of prompts without answers."""
    (tmp_path / "mine.py").write_text(MINE)
    rows = [{"prompt": f"say {i}", "level": i % 3, "topic": "numbers"} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def settings(mine, **more):
    small = {"task": str(mine / "prompts.jsonl"), "policy": "transformer:layers=1,width=16,heads=2,context=64"}
    small |= {"max_tokens": 8, "prompts": 2, "group_size": 2, "steps": 2, "eval_every": 1, "eval_prompts": 4}
    return small | {"trackers": (), "quiet": True, "out": mine / "run"} | more


def test_the_sum_of_weighted_rewards_by_hand():
    one = OwnReward("one", lambda prompt, texts: [1.0, 2.0, 3.0], 0.5)
    two = OwnReward("two", lambda prompt, texts: [None, -1, 10.0], -2.0)
    own = OwnRewards([one, two])
    [named] = own([(PROMPT, ["a", "b", "c"])])
    assert named == [{"one": 1.0}, {"one": 2.0, "two": -1.0}, {"one": 3.0, "two": 10.0}]
    assert [own.total(x) for x in named] == [0.5, 3.0, -18.5]
    [nothing] = OwnRewards([OwnReward("two", lambda prompt, texts: [None], 1.0)])([(PROMPT, ["a"])])
    assert nothing == [{}] and math.isnan(own.total({}))


def test_fields_of_the_row_by_name():
    seen = []
    functions = {
        "none": lambda prompt, texts: seen.append(()) or [0],
        "some": lambda prompt, texts, level, style="plain", *, answer: seen.append((level, style, answer)) or [0],
        "all": lambda prompt, texts, **fields: seen.append(tuple(fields)) or [0],
    }
    for name, function in functions.items():
        OwnRewards([OwnReward(name, function)])([(PROMPT, ["a"])])
    assert seen == [(), (3, "plain", "7"), ("topic", "level", "answer", "reference")]
    with pytest.raises(InputError, match=r"reward lacks: got 'tone'.*ask for topic, level, answer, reference"):
        OwnRewards([OwnReward("lacks", lambda prompt, texts, tone: [0])])([(PROMPT, ["a"])])


def test_async_rewards_wait_for_all_groups_at_once():
    waiting = []

    async def slow(prompt, texts):
        waiting.append(prompt.id)
        while len(waiting) < 3:
            await asyncio.sleep(0.001)
        return [float(prompt.id)]

    own = OwnRewards([OwnReward("slow", slow)])
    assert own([(Prompt(str(i)), ["a"]) for i in range(3)]) == [[{"slow": float(i)}] for i in range(3)]

    async def inside():
        return own([(Prompt("1"), ["a"])])

    assert asyncio.run(inside()) == [[{"slow": 1.0}]], "a notebook has a loop already"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda p, t: [1 / 0], r"reward f: got 'ZeroDivisionError.*test_rewards.py:\d+"),
        (lambda p, t: [1.0, 2.0], "one number for each of the 1 responses"),
        (lambda p, t: ["x"], "could not convert"),
        (lambda p, t: None, "not iterable"),
        (lambda p, t: [math.nan], "finite"),
        (lambda p, t: [1e30], "finite"),
    ],
)
def test_what_a_reward_may_not_do(function, told):
    with pytest.raises(InputError, match=told):
        OwnRewards([OwnReward("f", function)])([(PROMPT, ["a"])])


def test_an_async_reward_that_fails_says_where():
    async def fails(prompt, texts):
        raise KeyError("k")

    with pytest.raises(InputError, match=r"reward fails: got .*KeyError.*test_rewards.py:\d+"):
        OwnRewards([OwnReward("fails", fails)])([(PROMPT, ["a"])])


def test_prompts_without_answers_are_learnt_from_and_evaluated_by_two_rewards(mine, capsys):
    given = settings(mine, reward=(f"{mine}/mine.py:short", f"{mine}/mine.py:named:0.25"))
    run = ap.train("grpo", **given)
    row, last = run.rows[1], run.evaluations()[-1]
    assert {"reward/short", "reward/named"} <= row.keys() and "accuracy" not in row
    assert "eval/accuracy" not in last and {"eval/reward", "eval/reward_se", "eval/reward/short"} <= last.keys()
    samples = [json.loads(x) for x in (run.path / "samples" / "step-000002.jsonl").read_text().splitlines()]
    assert len(samples) == last["eval/n"] > 1
    totals = [s["rewards"].get("short", 0) + 0.25 * s["rewards"].get("named", 0) for s in samples]
    assert [s["reward"] for s in samples] == pytest.approx(totals)
    assert last["eval/reward"] == pytest.approx(np.mean(totals))
    assert last["eval/reward_se"] == pytest.approx(np.std(totals, ddof=1) / len(totals) ** 0.5)
    report = (run.path / "report.html").read_text() if (run.path / "report.html").exists() else None
    page = language.page(run).read_text() if report is None else report
    assert "Held-out reward" in page and "short -0.0" in page and "<span class=no>" not in page
    assert "held-out reward" in language.summary(run, mine)
    again = ap.resume(run.path, steps=3, quiet=True)
    assert again.rows[-1]["step"] == 3
    assert yaml.safe_load((run.path / "recipe.yaml").read_text())["reward"] == list(given["reward"])
    assert digests_of({"reward": list(given["reward"])}).keys() == {f"{mine}/mine.py"}
    assert [c.name for c in trust.named({"reward": given["reward"]})] == [f"{mine}/mine.py"] * 2


def test_runs_are_compared_by_the_own_reward(mine):
    given = {k: v for k, v in settings(mine, reward=f"{mine}/mine.py:short").items() if k != "out"}
    study = ap.compare(["grpo", "rloo"], seeds=2, out=mine / "study", **given)
    assert study.metric == "eval/reward"


def test_where_there_is_a_verifier_both_are_shown(mine):
    run = ap.train("grpo", **settings(mine, task="tiny-add", reward=f"{mine}/mine.py:short"))
    last = run.evaluations()[-1]
    assert {"eval/accuracy", "eval/reward", "eval/reward_se"} <= last.keys() and last["eval/reward"] < 0


def test_one_reward_alone_is_the_reward(mine):
    loop = lock_loop(compose("grpo").recipe)
    loop.world = replace(loop.world, reward_function=lambda prompt, texts: [float(len(t)) for t in texts])
    log = loop.step()
    assert log["reward/mean"] == 5.0 and "reward/<lambda>" not in log


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        ("grpo", {}, "--reward FILE.py:FUNCTION"),
        ("dapo", {}, "'answer'"),
        ("cog-rethinker", {"reward": "MINE:short"}, "FallbackRollout reads verdicts"),
        ("vade", {"reward": "MINE:short"}, "reads verdicts: give every row an 'answer'"),
        ("grpo", {"reward": "MINE:shrt"}, "no such function.*short"),
        ("grpo", {"reward": "MINE:short:much"}, "the weight is 'much'"),
        ("grpo", {"reward": "nothing.py:short"}, "existing file"),
        ("grpo", {"reward": ("MINE:short", "MINE:short:2")}, "two rewards of this name"),
        ("grpo", {"reward": "MINE:broken"}, r"ZeroDivisionError.*mine.py:12"),
        ("dpo", {"reward": "MINE:short"}, "samples no responses|recorded scores|scored responses"),
    ],
)
def test_what_is_refused(method, given, told, mine):
    def filled(value):
        return tuple(map(filled, value)) if isinstance(value, tuple) else value.replace("MINE", f"{mine}/mine.py")

    with pytest.raises(InputError, match=told):
        ap.train(method, **settings(mine, **{k: filled(v) for k, v in given.items()}))


def test_scores_need_answers(mine):
    given = {k: v for k, v in settings(mine, reward=f"{mine}/mine.py:short").items() if k != "quiet"}
    with pytest.raises(InputError, match="answer"):
        collect_scores("grpo", language.Settings(**given | {"out": mine / "scores.jsonl"}))
