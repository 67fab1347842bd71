"""DPO on real batches: TRL's loss and gradient, the example in a batch, recorded streams, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.families.base import evaluate
from anypolicy.families.language_pages import page as run_page
from anypolicy.families.language_pages import summary as run_summary
from anypolicy.methods.preference.dpo import Sigmoid, dpo
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.runs.directory import read_lines
from anypolicy.stages.pairs import PairLoss, preferences, with_pairs
from anypolicy.tasks.language.load import load_task
from tests.helpers import lock_loop, segment

POLICY = "transformer:layers=1,width=16,heads=2"
CHOSEN, REJECTED = [-0.5, -1.2, -0.3], [-1.5, -0.4]
REF_CHOSEN, REF_REJECTED = [-0.7, -1.0, -0.9], [-1.1, -0.6]


def example(*groups):
    """Groups of (tokens, reward) responses as a batch in float64, with its pairs."""
    made = [
        Group(str(g), Prompt(str(g), tokens=(g,)), [
            Trajectory(f"{g}/{i}", [segment(ids, [g])], reward=r) for i, (ids, r) in enumerate(rows)
        ]) for g, rows in enumerate(groups)
    ]  # fmt: skip
    return with_pairs(from_groups(made, torch.float64))


def filled(batch, rows):
    out = torch.zeros(batch.response.shape, dtype=torch.float64)
    for i, values in enumerate(rows):
        out[i, : len(values)] = torch.tensor(values, dtype=torch.float64)
    return out


def worked(objective=None, nll_coef=0.0, rejected_first=False):
    """Terms, metrics and gradient of the example as a batch of one pair."""
    rows = [([1, 2, 3], 1.0), ([4, 5], 0.0)]
    logp, ref = [CHOSEN, REJECTED], [REF_CHOSEN, REF_REJECTED]
    if rejected_first:
        rows, logp, ref = rows[::-1], logp[::-1], ref[::-1]
    batch = example(rows)
    batch = replace(batch, logp_ref=filled(batch, ref))
    x = filled(batch, logp).requires_grad_()
    terms, log = PairLoss(objective or Sigmoid(), nll_coef)(Scores(x), batch)
    sum(terms.values()).backward()
    return terms, log, x.grad


@pytest.mark.parametrize("rejected_first", [False, True])
def test_the_example_as_a_batch(rejected_first):
    terms, log, gradient = worked(rejected_first=rejected_first)
    assert float(terms["preference"].detach()) == pytest.approx(0.653947, abs=5e-7)
    assert float(log["pairs/margin"]) == pytest.approx(0.8)
    assert float(log["pairs/chosen"]) == pytest.approx(0.6)
    assert float(log["pairs/rejected"]) == pytest.approx(-0.2)
    assert float(log["pairs/accuracy"]) == 1
    chosen, rejected = (1, 0) if rejected_first else (0, 1)
    assert gradient[chosen].tolist() == pytest.approx([-0.048001] * 3, abs=5e-7)
    assert gradient[rejected, :2].tolist() == pytest.approx([0.048001] * 2, abs=5e-7)


def test_forms_of_the_example():
    for smoothing, form, value in ((0.1, "sigmoid", 0.661947), (0.1, "robust", 0.643947), (0.0, "per-token", 0.678260)):
        terms, _, _ = worked(Sigmoid(0.1, smoothing, form))
        assert float(terms["preference"].detach()) == pytest.approx(value, abs=5e-7)
    p = 1 / (1 + math.exp(-1))
    terms, _, _ = worked(Sigmoid(form="soft"))
    want = p * 0.653947 + (1 - p) * (0.653947 + 0.08)
    assert float(terms["preference"].detach()) == pytest.approx(want, abs=1e-6)
    terms, _, _ = worked(nll_coef=0.001)
    assert float(sum(terms.values()).detach()) == pytest.approx(0.654614, abs=5e-7)
    with pytest.raises(InputError, match="soft labels"):
        dpo(form="soft", smoothing=0.1)
    with pytest.raises(InputError, match="beta"):
        dpo(beta=0.0)


def test_ties_equal_responses_and_copies_make_no_pair():
    batch = example([([1], 1.0), ([2], 1.0)], [([3, 4], 1.0), ([3, 4], 0.0)], [([1], 1.0), ([2], 0.0), ([2], 0.0)])
    assert [tuple(p) for p in batch.pairs.tolist()] == [(4, 5)]
    made = preferences(batch, "all")
    assert (made.tied, made.equal) == (1, 2)
    batch.reward[4] = math.nan
    assert preferences(batch, "all").pairs.shape == (0, 2)


def test_the_mean_is_over_the_pairs_of_the_whole_batch():
    batch = example([([1], 2.0), ([2], 1.0), ([3], 0.0)], [([1], 1.0), ([2], 0.0)])
    assert batch.counted().preferences == len(batch.pairs) == 4
    batch = replace(batch, logp_ref=torch.zeros(5, 1, dtype=torch.float64), totals=batch.counted())
    x = torch.randn(5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = PairLoss(Sigmoid())(Scores(x), batch).terms["preference"]
    parts = [PairLoss(Sigmoid())(Scores(x[r]), batch.select(r)).terms["preference"] for r in
             (torch.tensor([0, 1, 2]), torch.tensor([3, 4]))]  # fmt: skip
    assert float(whole) == pytest.approx(float(sum(parts)))
    h = [float((x[a] - x[b]).sum()) for a, b in batch.pairs.tolist()]
    assert float(whole) == pytest.approx(sum(math.log(1 + math.exp(-0.1 * v)) for v in h) / 4)


# --- TRL -------------------------------------------------------------------------------------------------------------
WORDS = ["2+2=", "1+5=", "name a colour: "]
PAIRS = [("4", "five"), ("six", "7!"), ("blue and green", "a")]


def pair_file(path, rows=None):
    rows = rows or [{"prompt": w, "chosen": c, "rejected": r} for w, (c, r) in zip(WORDS, PAIRS, strict=True)]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def perturbed(policy, seed):
    """The policy after a random step, so that it differs from its reference."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=rng))
    return policy


def test_loss_and_gradient_are_those_of_trl(tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    policy, reference = load_policy(POLICY), load_policy(POLICY)
    perturbed(policy, 0)
    task = load_task(pair_file(tmp_path / "p.jsonl") + ":heldout=0")
    world = training.World(policy, NativeEngine(policy), task, training.Sampling(8), 0)
    loop = training.GroupLoop(dpo(), world, prompts=3, micro_tokens=1 << 20, reference=reference)
    batch, _ = loop.collect()
    batch = replace(loop.referenced(batch), totals=batch.counted())
    terms = loop.recipe.loss(policy.score(batch, 1.0), batch).terms
    terms["preference"].backward()
    ours = {n: p.grad.clone() for n, p in policy.module.named_parameters()}
    policy.module.zero_grad()
    rows = []
    for pair in batch.pairs.tolist():
        ids = [batch.response[i][batch.valid[i]].tolist() for i in pair]
        context = batch.context_index[pair[0]]
        prompt = batch.context[context][batch.context_valid[context]].tolist()
        rows.append({"prompt_ids": prompt, "chosen_ids": ids[0], "rejected_ids": ids[1]})
    data = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    config = DPOConfig(
        str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to=[], beta=0.1, gradient_checkpointing=False
    )
    trainer = DPOTrainer(policy.module, reference.module, config, train_dataset=data, processing_class=policy.tokenizer)
    inputs = DataCollatorForPreference(policy.tokenizer.pad_token_id)(rows)
    trainer.model.eval()
    loss = trainer._compute_loss(trainer.model, inputs, False)
    loss.backward()
    assert float(terms["preference"].detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    theirs = dict(trainer.model.named_parameters())
    scale = max(float(theirs[n].grad.abs().max()) for n in ours)
    assert scale > 0
    for name, g in ours.items():
        assert float((g - theirs[name].grad).abs().max()) < 1e-6 * scale, name


# --- runs ------------------------------------------------------------------------------------------------------------
def sums_file(path, count=24):
    rows = [{"prompt": f"{i}?", "chosen": f"{i % 7}", "rejected": f"{(i + 1) % 7}x"} for i in range(count)]
    return pair_file(path, rows)


def small(task, out, **more):
    return training.train("dpo", **({"task": task, "policy": POLICY, "out": out, "quiet": True, "trackers": (),
                                     "steps": 4, "checkpoint_every": 2, "prompts": 6} | more))  # fmt: skip


def test_a_run_in_two_parts_is_the_whole_run(tmp_path):
    task = sums_file(tmp_path / "p.jsonl")
    whole, part = small(task, tmp_path / "whole", steps=6), small(task, tmp_path / "part", steps=4)
    again = training.resume(tmp_path / "part", steps=6, quiet=True)
    assert [r for r in whole.rows if "event" not in r] == [r for r in again.rows if "event" not in r]
    a, b = (dict(x.policy.module.named_parameters()) for x in (whole, again))
    assert all(torch.equal(a[n], b[n]) for n in a)
    last = again.evaluations()[-1]
    assert last["eval/kl"] > 0 and last["eval/pair_accuracy"] == pytest.approx(last["eval/pair_accuracy"])
    assert last == whole.evaluations()[-1]
    assert part.evaluations()[0]["eval/kl"] == pytest.approx(0, abs=1e-9)
    page = run_page(again).read_text()
    assert "Divergence from the reference" in page and "Pairs in the right order" in page
    assert "held-out pairs in the right order" in run_summary(again, tmp_path)
    assert evaluate(tmp_path / "part")["eval/kl"] == last["eval/kl"]


def test_it_learns_recorded_pairs(tmp_path):
    run = small(sums_file(tmp_path / "p.jsonl"), tmp_path / "run", steps=40, lr=3e-3, checkpoint_every=0, eval_every=40)
    rows = [r for r in run.rows if "event" not in r]
    assert rows[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["pairs/margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["pairs/accuracy"] == 1
    assert run.evaluations()[-1]["eval/pair_accuracy"] > 0.7


def online(out, **more):
    settings = {"task": "tabular-lock:prompts=8,length=2,vocabulary=4", "steps": 6, "out": out, "quiet": True,
                "trackers": (), "prompts": 6, "lr": 0.1, "checkpoint_every": 3, "record": True}  # fmt: skip
    return training.train("online-dpo", **(settings | more))


def replayed(stream, start, window, steps=6):
    task = load_task(str(stream))
    recipe = dpo(window=window, pairing="first_round")
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=0.1))
    policy = load_task("tabular-lock:prompts=8,length=2,vocabulary=4").make_policy(0)
    assert torch.equal(policy.module.logits, start)
    for _ in training.fit(recipe, task, policy, steps=steps, prompts=6):
        pass
    return policy.module.logits.detach()


def test_a_replayed_stream_is_the_online_run_to_the_bit(tmp_path):
    run = online(tmp_path / "run")
    start = load_task("tabular-lock:prompts=8,length=2,vocabulary=4").make_policy(0).module.logits
    stream, after = tmp_path / "run" / "groups.jsonl", run.policy.module.logits
    assert not torch.equal(after, start)
    assert torch.equal(replayed(stream, start, 1), after)
    assert not torch.equal(replayed(stream, start, 6), after)
    assert len(read_lines(stream)) == 36
    assert load_task(str(stream)).suggested == {"prompts": 6}


def test_the_stream_of_a_run_in_two_parts_is_that_of_the_whole_run(tmp_path):
    online(tmp_path / "whole")
    online(tmp_path / "part", steps=3)
    training.resume(tmp_path / "part", steps=6, quiet=True)
    whole, part = ((tmp_path / n / "groups.jsonl").read_text() for n in ("whole", "part"))
    assert whole == part


def test_a_shuffled_window_keeps_batches_whole():
    from anypolicy.stages.recorded import StreamSampler

    order = StreamSampler(4).begin(22, 0)
    drawn = [order.draw(2, s, 0) for s in range(11)]
    assert sorted(i for d in drawn for i in d) == list(range(22))
    assert all(b == a + 1 and a % 2 == 0 for a, b in drawn)
    assert {x // 8 for d in drawn[:4] for x in d} == {0}
    assert drawn != [[2 * i, 2 * i + 1] for i in range(11)]
    assert [StreamSampler(1).begin(22, 0).draw(2, s, 0) for s in range(1)] == [[0, 1]]
    other = StreamSampler(4).begin(22, 0)
    other.restore({"drawn": 6})
    assert other.draw(2, 3, 0) == drawn[3]
    with pytest.raises(InputError, match="only 22"):
        order.draw(23, 0, 0)


def test_the_reference_is_computed_once_for_recorded_responses():
    loop, calls = lock_loop(dpo(), prompts=16), []
    score = loop.scores
    loop.scores = lambda batch, policy, **k: calls.append(batch.rows) or score(batch, policy, **k)
    for _ in range(6):
        loop.step()
    recorded, seen = 16 * 4, 6 * 16 * 2
    assert 32 <= sum(calls) <= recorded < seen and len(loop.reference.known) <= recorded


# --- bad input -------------------------------------------------------------------------------------------------------
GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (GOOD | {"prompt": "z", "rejected": "b"}, "line 2.*the same"),
        (GOOD | {"prompt": "z", "chosen": ""}, "line 2.*'chosen' is ''"),
        (GOOD | {"prompt": "z", "margin": -1}, "line 2.*margin"),
        (GOOD | {"prompt": "z", "margin": "much"}, "line 2.*margin"),
        ({"prompt": "z", "chosen": "b"}, "line 2.*'rejected' is None"),
        ({"prompt": [1, 2], "chosen": "3 4", "rejected": "five"}, "line 2.*ids with spaces"),
    ],
)
def test_bad_pairs_name_their_line(tmp_path, row, match):
    with pytest.raises(InputError, match=match):
        load_task(pair_file(tmp_path / "p.jsonl", [GOOD, row]))


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"step": 0, "context": [1], "responses": [[1], []], "scores": [1, 0]}, "line 1.*none of them empty"),
        ({"step": 0, "context": [1], "responses": [[1], [2]], "scores": [1]}, "line 1.*2 finite numbers"),
        ({"step": 0, "context": [1], "responses": [[1], [2]]}, "line 1.*'scores' is None"),
        ({"step": 0, "context": "one", "responses": [[1], [2]], "scores": [1, 0]}, "line 1.*token ids"),
    ],
)
def test_bad_groups_name_their_line(tmp_path, row, match):
    with pytest.raises(InputError, match=match):
        load_task(pair_file(tmp_path / "s.jsonl", [row]))


def test_missing_scores_name_their_prompt(tmp_path):
    rows = [{"prompt": "a", "responses": ["b", "c"]}, {"prompt": "z", "responses": ["b", "c"], "scores": [1, 0]}]
    with pytest.raises(InputError, match="responses and scores"):
        training.plan("dpo", training.Settings(pair_file(tmp_path / "r.jsonl", rows) + ":verifier=none"))


def test_copies_of_a_pair_are_one(tmp_path):
    task = load_task(pair_file(tmp_path / "p.jsonl", [GOOD, GOOD, GOOD | {"prompt": "z"}]))
    assert len(task.train) + len(task.heldout) == 2


def test_a_reference_with_other_tokens_is_refused(tmp_path):
    other = small_transformer(vocabulary=11, layers=1, width=8, heads=2, context_length=32, seed=0, eos_id=1, pad_id=0)
    (tmp_path / "other").mkdir()
    other.save(tmp_path / "other")
    with pytest.raises(InputError, match="same tokenizer"):
        small(sums_file(tmp_path / "p.jsonl"), tmp_path / "run", reference=str(tmp_path / "other"))
    assert not (tmp_path / "run").exists()


def test_a_given_reference_is_the_one(tmp_path):
    task = sums_file(tmp_path / "p.jsonl")
    start = perturbed(load_policy(POLICY), 1)
    (tmp_path / "other").mkdir()
    start.save(tmp_path / "other")
    run = small(task, tmp_path / "run", steps=1, reference=str(tmp_path / "other"))
    assert abs(run.rows[1]["pairs/margin"]) > 1e-3
    assert run.evaluations()[0]["eval/kl"] > 1e-6


def test_a_reward_of_ones_own_has_nothing_to_score(tmp_path):
    with pytest.raises(InputError, match="recorded scores"):
        training.plan("dpo", training.Settings(sums_file(tmp_path / "p.jsonl"), reward="mine.py:f"))


def test_scores_are_those_of_temperature_one():
    batch = []
    for temperature in (1.0, 0.5):
        loop = lock_loop(compose("online-dpo").recipe)
        loop.world = replace(loop.world, sampling=replace(loop.world.sampling, temperature=temperature))
        assert loop.temperature == 1
        log = loop.step()
        batch.append(log)
    assert "ratio/mean" in batch[0] and "ratio/mean" not in batch[1]
    assert np.isfinite(list(batch[1].values())).all()
