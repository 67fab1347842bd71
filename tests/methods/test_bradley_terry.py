"""The Bradley–Terry loss by hand, and a reward model from pairs to a reward of a run."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import anypolicy as ap
from anypolicy import catalogue
from anypolicy.cli.app import main
from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.families import reward_models
from anypolicy.loops.reward_model import calibrate, pair_scores
from anypolicy.methods.supervised.bradley_terry import BradleyTerry, bradley_terry, preference_loss
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.runs.metrics import documented
from anypolicy.tasks.language.preferences import load_pairs

SMALL = {"policy": "transformer:layers=1,width=32,heads=4,context=48", "lr": 3e-3, "trackers": (), "threads": 1}


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_loss_by_hand():
    got = preference_loss(t(1.5, 0.5, 2.0), t(0.5, 1.5, 2.0))
    assert got.tolist() == pytest.approx([0.313262, 1.313262, math.log(2)], abs=1e-6)
    assert preference_loss(t(1.5), t(0.5), t(0.3)).item() == pytest.approx(math.log1p(math.exp(-0.7)), abs=1e-12)
    assert torch.isfinite(preference_loss(t(-800.0), t(800.0))).all()


def test_gradient_is_the_probability_of_the_other_choice():
    chosen, rejected = t(0.4, -1.0).requires_grad_(), t(0.1, 2.0).requires_grad_()
    preference_loss(chosen, rejected).sum().backward()
    p = torch.sigmoid(rejected - chosen).detach()
    torch.testing.assert_close(chosen.grad, -p)
    torch.testing.assert_close(rejected.grad, p)


def test_only_differences_count_until_scores_are_centred():
    loss = BradleyTerry()
    a, b, m = t(1.0, 0.2), t(0.3, 0.9), t(0.0, 5.0)
    torch.testing.assert_close(loss(a, b, m)["preference"], loss(a + 7, b + 7, m)["preference"])
    assert torch.equal(loss(a, b, m)["preference"], preference_loss(a, b))
    assert torch.equal(BradleyTerry(needs_margin=True)(a, b, m)["preference"], preference_loss(a, b, m))
    assert BradleyTerry(centre_coef=0.01)(t(1.5), t(0.5), t(0.0))["centre"].item() == pytest.approx(0.04)
    assert set(loss(a, b, m)) == {"preference"}
    with pytest.raises(InputError, match="centre_coef"):
        bradley_terry(centre_coef=-1.0)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def pairs(tmp_path):
    """More of the letter a is better, whatever the prompt."""
    rows = []
    for i in range(60):
        good, bad = "ab" * (i % 3) + "aaaa"[: 1 + i % 4], "bc" * (1 + i % 3)
        rows.append({"prompt": f"question {i}", "chosen": good, "rejected": bad, "margin": 0.5})
    return write(tmp_path / "pairs.jsonl", rows)


def test_it_learns_what_was_preferred_and_loads_in_both_worlds(pairs, tmp_path):
    run = ap.train_reward_model(
        "bradley-terry", pairs=pairs, out=tmp_path / "rm", epochs=8, knobs={"pairs": 16}, quiet=True, **SMALL
    )
    last = run.rows[-1]
    assert last["eval/accuracy"] > 0.9
    assert last["eval/accuracy"] > run.rows[0]["eval/accuracy"] - 1e-9
    for row in run.rows:
        assert [k for k in row if not documented(k)] == []
    assert reward_models.evaluate(tmp_path / "rm") == pytest.approx(
        {k: v for k, v in last.items() if k.startswith("eval/")}
    )

    loaded = RewardModel.load(tmp_path / "rm")
    prompt = Prompt("x", ({"role": "user", "content": "question 3"},))
    texts = ["aaaa", "bcbc", "ab"]
    assert loaded(prompt, texts) == run.model(prompt, texts)
    assert loaded(prompt, texts)[0] > loaded(prompt, texts)[1]
    assert loaded.calibration == run.model.calibration == calibrate(run.model, load_pairs(str(pairs))[0])

    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm" / "reward-model")
    ids = torch.tensor([loaded.encode(prompt, "aaaa")])
    with torch.no_grad():
        logit = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert logit.shape == (1, 1)
    states = theirs.base_model(input_ids=ids).last_hidden_state[0, -1]
    assert float(theirs.score(states)) == pytest.approx(loaded(prompt, ["aaaa"])[0], abs=1e-5)
    assert load_file(tmp_path / "rm" / "reward-model" / "model.safetensors")["score.weight"].shape == (1, 32)


def test_scales_keep_the_order(pairs, tmp_path):
    run = ap.train_reward_model(
        "bradley-terry", pairs=pairs, out=tmp_path / "rm", knobs={"pairs": 16}, quiet=True, **SMALL
    )
    prompt, texts = Prompt("x", ({"role": "user", "content": "q"},)), ["aaa", "bcb", "ca", "aab"]
    raw = run.model(prompt, texts)
    mean, std = run.model.calibration
    standard = RewardModel.load(tmp_path / "rm", scale="standard")(prompt, texts)
    unit = RewardModel.load(tmp_path / "rm", scale="unit")(prompt, texts)
    assert standard == pytest.approx([(r - mean) / std for r in raw])
    assert unit == pytest.approx([2 / (1 + math.exp(mean - r)) - 1 for r in raw])
    assert all(-1 < u < 1 for u in unit)
    ranks = [sorted(range(4), key=x.__getitem__) for x in (raw, standard, unit)]
    assert ranks[0] == ranks[1] == ranks[2]
    everything = pair_scores(run.model, load_pairs(str(pairs))[0]).double()
    assert (float(everything.mean()), float(everything.std(correction=0))) == pytest.approx((mean, std))


def test_micro_batches_do_not_change_a_step(pairs):
    p = reward_models.plan("bradley-terry", reward_models.RewardSettings(str(pairs), **SMALL), {"centre_coef": 0.01})
    after = []
    for micro_tokens in (8192, 60, 1):
        _, loop = reward_models.loop_of(replace(p, settings=replace(p.settings, micro_tokens=micro_tokens)))
        log = loop.step()
        after.append((log["grad_norm"], log["loss/preference"], log["loss/centre"], log["pairs/margin"]))
    assert after[1] == pytest.approx(after[0], rel=1e-4)
    assert after[2] == pytest.approx(after[0], rel=1e-4)


def test_a_run_that_stopped_goes_on_to_the_same_bits(pairs, tmp_path, monkeypatch):
    settings = {"epochs": 2, "knobs": {"pairs": 16}, "quiet": True, "checkpoint_every": 2, **SMALL}
    whole = ap.train_reward_model("bradley-terry", pairs=pairs, out=tmp_path / "whole", **settings)
    step, calls = reward_models.PreferenceLoop.step, []

    def stops(loop):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return step(loop)

    monkeypatch.setattr(reward_models.PreferenceLoop, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        ap.train_reward_model("bradley-terry", pairs=pairs, out=tmp_path / "cut", **settings)
    monkeypatch.undo()
    again = reward_models.resume(tmp_path / "cut", quiet=True)
    assert again.rows == whole.rows
    a, b = (load_file(tmp_path / n / "reward-model" / "model.safetensors") for n in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_reward_models_are_compared(pairs, tmp_path):
    known = catalogue.get("bradley-terry", "reward-model")
    catalogue.method(known.card, "bradley-terry-too")(known.build)
    try:
        study = ap.compare(["bradley-terry", "bradley-terry-too"], pairs=str(pairs), seeds=2, out=tmp_path / "study",
                           quiet=True, **SMALL)  # fmt: skip
        assert (study.metric, study.unit) == ("eval/accuracy", "steps")
        [found] = study.differences
        assert found.difference.low == found.difference.high == 0
    finally:
        del catalogue.REGISTERED["bradley-terry-too"]


def test_command_line_from_pairs_to_a_policy(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "task.jsonl", [{"prompt": f"q{i}", "answer": "a"} for i in range(12)])
    policy = ["--policy", SMALL["policy"], "--threads", "1", "--trackers"]
    train = ["train", "bradley-terry", "--pairs", "pairs.jsonl", "--bradley-terry.pairs", "20", "--out", "rm"]
    assert main([*train, *policy]) == 0
    assert "--reward-model rm" in capsys.readouterr().out.replace(str(tmp_path) + "/", "")
    assert main(["eval", "rm"]) == 0
    assert "eval/accuracy" in json.loads(capsys.readouterr().out)
    assert main(["resume", "rm", "--quiet"]) == 0

    rl = ["--task", "task.jsonl:max_tokens=4", "--reward-model", "rm", "--reward-scale", "unit", "--prompts", "4"]
    for spec in ("pf-ppo", "grpo", "rloo+pf-ppo.selection"):
        out = spec.replace("+", "-")
        assert main(["train", spec, *rl, "--steps", "2", "--out", out, "--quiet", *policy]) == 0
        rows = [json.loads(x) for x in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        rewards = [r["reward/mean"] for r in rows if "reward/mean" in r]
        assert len(rewards) == 2 and all(-1 < r < 1 and r != 0 for r in rewards)
    assert main(["scores", "pf-ppo", *rl, "--out", "scores.jsonl", *policy]) == 0
    rows = [json.loads(x) for x in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 5
    assert {r["score"] for r in rows} <= {0.0, 1.0} and all(-1 < r["reward"] < 1 for r in rows)
    capsys.readouterr()
    assert main(["filtration", "scores.jsonl"]) == 0
    assert "no pick" in capsys.readouterr().out


def test_it_is_listed_but_trains_no_policy():
    assert "bradley-terry" not in catalogue.methods()
    assert catalogue.methods("reward-model").keys() == {"bradley-terry"}
    with pytest.raises(InputError, match="pairs: got None; say what bradley-terry learns from"):
        ap.train("bradley-terry", task="tabular-lock")
    with pytest.raises(InputError, match="use `anypolicy train grpo`"):
        ap.train_reward_model("grpo", pairs="pairs.jsonl")
    assert "preference_loss" in ap.show("bradley-terry")


BAD = [
    ('{"prompt": "a", "chosen": "b"}', "line 1", "'rejected' is None"),
    ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "line 1", "the same"),
    ('{"prompt": 3, "chosen": "b", "rejected": "c"}', "line 1", "'prompt' is 3"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}', "line 1", "margin"),
    ('{"prompt": "a", "chosen": "b", "rejected": ', "line 1", "not JSON"),
    ("[1]", "line 1", "an object with prompt, chosen and rejected"),
    ("", "pairs", "empty"),
]


@pytest.mark.parametrize(("text", "where", "says"), BAD)
def test_bad_pairs_are_named(tmp_path, text, where, says):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        load_pairs(str(tmp_path / "p.jsonl"))
    assert where in str(caught.value)


def test_bad_settings_are_named(pairs, tmp_path):
    def fails(match, **given):
        with pytest.raises(InputError, match=match):
            ap.train_reward_model("bradley-terry", pairs=pairs, out=tmp_path / "rm", quiet=True, **(SMALL | given))
        assert not (tmp_path / "rm").exists()

    fails("epochs", epochs=0)
    fails("did you mean 'epochs'", epoch=2)
    fails("55 of 55 training pairs", policy="transformer:context=8")
    fails("did you mean 'pairs'", knobs={"pair": 2})
    none = write(tmp_path / "n.jsonl", [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(4)])
    with pytest.raises(InputError, match="margin"):
        ap.train_reward_model("bradley-terry", pairs=none, out=tmp_path / "rm", knobs={"margin": True}, **SMALL)
    rows = [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} | ({"margin": 1.0} if i % 2 else {}) for i in range(12)]
    one = write(tmp_path / "one.jsonl", rows)  # half of them without one
    with pytest.raises(InputError, match="margin"):
        ap.train_reward_model("bradley-terry", pairs=one, out=tmp_path / "rm", knobs={"margin": True}, **SMALL)
    with pytest.raises(InputError, match="no such file"):
        load_pairs(str(tmp_path / "nothing.jsonl"))
    for given, match in (({"reward_model": "nowhere"}, "config.json"), ({"reward_scale": "unit"}, "give one"),
                         ({"reward_model": "x", "reward": "y.py:z"}, "existing file")):  # fmt: skip
        with pytest.raises(InputError, match=match):
            ap.train("grpo", task="tabular-lock", out=tmp_path / "run", trackers=(), **given)
    assert not (tmp_path / "run").exists()


def test_all_pairs_of_a_prompt_are_on_one_side(tmp_path):
    rows = [{"prompt": f"{i}", "chosen": f"good {k}", "rejected": "bad"} for i in range(40) for k in range(3)]
    rows.append({"chosen": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "yes"}],
                 "rejected": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "no"}]})  # fmt: skip
    rows.append({"prompt": [4, 5], "chosen": "1 2", "rejected": "2 1", "margin": 2})
    train, held = load_pairs(str(write(tmp_path / "p.jsonl", rows)), heldout=0.3)
    assert len(train) + len(held) == 122
    assert not {p.prompt.id for p in train} & {p.prompt.id for p in held}
    assert len(held) >= 3
    [talk] = [p for p in train + held if p.prompt.messages and p.prompt.messages[0]["content"] == "u"]
    assert (talk.chosen, talk.rejected) == ("yes", "no")
    [ids] = [p for p in train + held if p.prompt.tokens]
    assert (ids.prompt.tokens, ids.margin) == ((4, 5), 2.0)
