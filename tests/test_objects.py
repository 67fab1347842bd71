"""Objects in place of names: rows, models, rewards and tasks that a caller hands in; arms of a comparison."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

import anypolicy as ap
from anypolicy.cli.app import main
from anypolicy.errors import InputError
from anypolicy.tasks.language.tiny_add import TinyAdd

POLICY = "transformer:layers=1,width=32,heads=2"
ROWS = [{"prompt": f"say {i}", "wanted": "abc"[i % 3]} for i in range(20)]
PAIRS = [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no"} for i in range(20)]
SMALL = {"policy": POLICY, "steps": 2, "prompts": 2, "max_tokens": 8, "quiet": True, "trackers": ()}


def brief(prompt, responses):
    return [-len(r) for r in responses]


def begins(prompt, responses, wanted):
    return [float(r.startswith(wanted)) for r in responses]


def model():
    tokenizer = ByT5Tokenizer(extra_ids=0)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1)
    return GPT2LMHeadModel(config), tokenizer


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_rows_functions_and_a_model_train_as_their_files_do(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def brief(prompt, responses):\n    return [-len(r) for r in responses]\n"
        "def begins(prompt, responses, wanted):\n    return [float(r.startswith(wanted)) for r in responses]\n"
    )
    Dataset.from_list(ROWS).to_json(tmp_path / "rows.jsonl")
    mine = f"{tmp_path}/mine.py"
    named = ap.train("grpo", task=str(tmp_path / "rows.jsonl"), reward=(f"{mine}:brief:0.1", f"{mine}:begins"),
                     out=tmp_path / "named", **SMALL)  # fmt: skip
    handed = ap.train("grpo", task=Dataset.from_list(ROWS), reward=[(brief, 0.1), begins], out=tmp_path / "handed",
                      **SMALL)  # fmt: skip
    assert named.rows == handed.rows and same_weights(named.policy.module, handed.policy.module)
    assert {"eval/reward/brief", "eval/reward/begins"} <= handed.rows[-1].keys()


def test_a_run_of_objects_goes_on_with_the_same_objects(tmp_path):
    given = {"task": ROWS, "reward": [(brief, 0.1), begins], "policy": model()}
    whole = ap.train("grpo", **(SMALL | given | {"steps": 4}), out=tmp_path / "whole")
    begun = ap.train("grpo", **SMALL | given, out=tmp_path / "run")
    assert not same_weights(begun.policy.module, given["policy"][0])
    for left_out in ("task", "reward", "policy"):
        rest = {k: v for k, v in given.items() if k != left_out}
        with pytest.raises(InputError, match=rf"hand it in again, as in ap.resume\(run, {left_out}=…\)"):
            ap.resume(tmp_path / "run", steps=4, quiet=True, **rest)
    other = [
        {"task": ROWS[1:]},
        {"reward": [brief, begins]},
        {"reward": [begins, (brief, 0.1)]},
        {"policy": "smollm2-135m"},
    ]
    for wrong in other:
        with pytest.raises(InputError, match="the run was begun with"):
            ap.resume(tmp_path / "run", steps=4, quiet=True, **given | wrong)
    with pytest.raises(InputError, match=r"steps_wanted: .*what a run was begun with is task"):
        ap.resume(tmp_path / "run", quiet=True, steps_wanted=3)
    gone_on = ap.resume(tmp_path / "run", steps=4, quiet=True, **given)
    assert [r for r in gone_on.rows if "event" not in r] == [r for r in whole.rows if "event" not in r]
    assert same_weights(gone_on.policy.module, whole.policy.module)
    assert ap.evaluate(tmp_path / "run", prompts=2, **given)["eval/n"] == 2
    assert ap.load(tmp_path / "run", **given).generate("say 3") == gone_on.generate("say 3")


def test_the_model_that_is_handed_in_stays_as_it_was(tmp_path):
    mine = model()
    before = copy.deepcopy(mine[0])
    run = ap.train("grpo", task=ROWS, reward=brief, out=tmp_path / "run", **SMALL | {"policy": mine})
    assert same_weights(before, mine[0]) and not same_weights(run.policy.module, mine[0])


def test_pairs_train_a_policy_and_a_reward_model(tmp_path):
    run = ap.train("dpo", task=PAIRS, out=tmp_path / "dpo", **{k: v for k, v in SMALL.items() if k != "max_tokens"})
    assert "eval/pair_accuracy" in run.rows[-1]
    model = ap.train("bradley-terry", pairs=Dataset.from_list(PAIRS), policy=POLICY, out=tmp_path / "rm", quiet=True,
                     trackers=())  # fmt: skip
    assert "eval/accuracy" in model.rows[-1]
    scored = ap.train("grpo", task=ROWS, reward_model=str(tmp_path / "rm"), out=tmp_path / "run", **SMALL)
    assert "eval/reward" in scored.rows[-1]


def test_a_task_of_ones_own(tmp_path):
    named = ap.train("grpo", task="tiny-add", out=tmp_path / "named", **SMALL)
    handed = ap.train("grpo", task=TinyAdd(seed=0), out=tmp_path / "handed", **SMALL)
    assert named.rows == handed.rows


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"task": {"train": ROWS}}, "several data sets: choose one"), ({"task": []}, "no rows"),
     ({"task": [1, 2]}, "row 0: 1.*rows, each with values by name"), ({"task": object()}, "hand in a list of rows"),
     ({"policy": model()[0]}, r"\(model, tokenizer\)"), ({"policy": 3}, "text"),
     ({"reward": [3]}, "text"), ({"reward": [lambda p, r: r, lambda p, r: r]}, "different objects have this name"),
     ({"reward": object()}, "use a function")],
)  # fmt: skip
def test_objects_that_cannot_be_used_are_refused(wrong, told, tmp_path):
    with pytest.raises(InputError, match=told):
        ap.train("grpo", **SMALL | {"task": ROWS, "reward": brief, "out": tmp_path / "run"} | wrong)
    assert not (tmp_path / "run").exists()


def test_settings_of_the_method_stand_among_those_of_the_run(tmp_path):
    small = {"task": "tabular-lock", "steps": 1, "quiet": True, "trackers": ()}
    one = ap.train("grpo", kl_coef=0.5, out=tmp_path / "one", **small)
    two = ap.train("grpo", knobs={"kl_coef": 0.5}, out=tmp_path / "two", **small)
    assert (one.path / "recipe.yaml").read_text() == (two.path / "recipe.yaml").read_text()
    for method, given, told in [
        ("grpo", {"kl_cof": 1}, "did you mean 'kl_coef'"),
        ("grpo+ngrpo.advantage", {"std": "std"}, "grpo and ngrpo have it: say whose it is"),
    ]:
        with pytest.raises(InputError, match=told):
            ap.train(method, out=tmp_path / "no", **small, **given)
    with pytest.raises(InputError, match=r"gamma: got 0.9; here it is 'discount'"):
        ap.train("sac", task="gym/Pendulum-v1", gamma=0.9)


# --- arms of a comparison --------------------------------------------------------------------------------------------
LOCK = {"task": "tabular-lock", "steps": 2, "seeds": 2, "quiet": True, "trackers": ()}


def test_arms_have_settings_of_their_own(tmp_path):
    arms = {"free": ap.Arm("grpo", kl_coef=0.0), "tied": ap.Arm("grpo", kl_coef=5.0), "as it is": "grpo"}
    study = ap.compare(arms, out=tmp_path / "study", **LOCK)
    assert {a.name for a in study.arms} == set(arms)
    alone = ap.train("grpo", kl_coef=5.0, task="tabular-lock", steps=2, seed=1, out=tmp_path / "alone", quiet=True,
                     trackers=())  # fmt: skip
    tied = ap.load(tmp_path / "study" / "tied" / "seed-1").rows
    assert tied == alone.rows and tied != ap.load(tmp_path / "study" / "free" / "seed-1").rows
    with pytest.raises(InputError, match=r"kl_coef.*choose another --out"):
        ap.compare(arms | {"free": ap.Arm("grpo", kl_coef=0.1)}, out=tmp_path / "study", **LOCK)


def test_a_setting_is_varied(tmp_path, capsys):
    study = ap.compare(["grpo"], vary={"lr": [0.1, 0.3], "clip": [0.1, 0.2]}, out=tmp_path / "python", **LOCK)
    names = {f"grpo:lr={lr},clip={clip}" for lr in (0.1, 0.3) for clip in (0.1, 0.2)}
    assert {a.name for a in study.arms} == names
    command = ["compare", "grpo", "--task", "tabular-lock", "--steps", "2", "--seeds", "2", "--quiet", "--trackers",
               "none", "--vary", "lr=1e-1,0.3", "--vary", "clip=0.1,0.2", "--out", str(tmp_path / "text")]  # fmt: skip
    assert main(command) == 0
    assert all(name in capsys.readouterr().out for name in ["grpo:lr=0.1,clip=0.1"])
    assert main(["compare", "grpo", "grpo:clip=0.1,lr=1e-1", *command[2:-6], "--out", str(tmp_path / "arm")]) == 0
    assert "grpo:clip=0.1,lr=1e-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arms", "more", "told"),
    [(["grpo"], {}, "at least two"), (["grpo", "grpo"], {}, "different arms"),
     (["grpo:lr=0.1"], {"vary": {"lr": [0.1, 0.2]}}, "says it already"), (["grpo:lr"], {}, "key=value"),
     ([ap.Arm("grpo", seed=3), "rloo"], {}, "the same seeds"), (["grpo:clp=3", "grpo"], {}, "did you mean 'clip'"),
     (["grpo", "sac"], {}, "methods of one family"),
     ({"a/b": "grpo", "a:b": "rloo"}, {}, "same names"),
     (["grpo", "rloo"], {"reward": brief, "workers": 2}, "workers: got 2.*objects given as reward")],
)  # fmt: skip
def test_arms_that_cannot_be_compared_are_refused(arms, more, told, tmp_path):
    with pytest.raises(InputError, match=told):
        ap.compare(arms, out=tmp_path / "study", **LOCK | more)
    assert not (tmp_path / "study").exists()
