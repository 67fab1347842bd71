"""One suite for every method of the catalogue. A new method file is tested by being there."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from anypolicy import catalogue
from anypolicy.compose import STAGES, compose
from anypolicy.data.batch import TOKEN_FIELDS, from_groups
from anypolicy.families import language as training
from anypolicy.families.language import Settings
from anypolicy.policies.language.load import load_policy
from anypolicy.runs.metrics import documented
from anypolicy.runs.recipes import alike
from anypolicy.tasks.language.base import Score
from tests.helpers import lock_loop

METHODS = sorted(catalogue.methods())
LEARNS = 0.08
"""Least rise of the exact success on the graded lock after 40 steps, mean over 5 seeds."""


def weights(loop):
    return loop.world.policy.module.logits.detach().clone()


def collected(loop):
    """One batch of experience as the loop would train on, with its first mini-batch's denominators."""
    batch, _ = loop.collect()
    loss = loop.recipe.loss
    if loss.needs.reference:
        batch = loop.referenced(batch)
    return loop.with_baseline(replace(batch, totals=batch.counted(), row_seed=loop.row_seeds(batch, 0)))


def gradient(loop, batch, micro_tokens=1 << 20):
    """Gradient of the whole loss of one optimiser batch, micro-batch by micro-batch."""
    for p in loop.world.policy.module.parameters():
        p.grad = None
    whole_groups = loop.recipe.loss.needs.whole_groups
    for rows in batch.chunks(micro_tokens, whole_groups=whole_groups):
        for part in loop.parts(batch.select(rows)):
            torch.stack(list(part.terms.values())).sum().backward()
    return loop.world.policy.module.logits.grad.clone()


@pytest.mark.parametrize("slug", METHODS)
def test_card_and_header_are_complete(slug):
    m = catalogue.get(slug)
    for name in ("title", "paper", "family", "idea", "composes_with", "claim"):
        assert getattr(m.card, name)
    for word in ("Paper:", "Idea:", "Changes:", "Silent:", "Differs:"):
        assert word in m.header
    assert set(m.card.changes) <= set(STAGES)
    base, mine = compose("grpo").recipe, compose(slug).recipe
    for stage in m.card.changes:
        assert getattr(base, stage) != getattr(mine, stage)
    assert (m.build.__doc__ or "").strip()


@pytest.mark.parametrize("slug", METHODS)
def test_two_steps_and_only_documented_names(slug):
    loop = lock_loop(compose(slug).recipe)
    before = weights(loop)
    for _ in range(2):
        log = loop.step()
        more = catalogue.get(slug).card.metrics
        assert [name for name in log if not documented(name, more)] == []
        assert all(np.isfinite(list(log.values())))
    assert not torch.equal(before, weights(loop))


@pytest.mark.parametrize("slug", METHODS)
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_no_signal_moves_nothing(slug, reward):
    if reward not in catalogue.get(slug).card.no_signal:
        assert reward in (0.0, 1.0)
        return
    recipe = compose(slug).recipe
    if recipe.advantage.needs.reference:  # a divergence in the reward is a signal: rounding, at first
        recipe = replace(recipe, advantage=replace(recipe.advantage, kl_coef=0.0))
    loop = lock_loop(recipe)
    loop.world.task.score = lambda prompt, response, text: Score(reward, reward == 1)
    before = weights(loop)
    for _ in range(2):
        loop.step()
    assert torch.equal(before, weights(loop))


@pytest.mark.parametrize("slug", METHODS)
def test_padding_row_order_and_micro_batches_leave_the_gradient_unchanged(slug):
    loop = lock_loop(compose(slug).recipe)
    for _ in range(2):
        loop.step()
    batch = collected(loop)
    want = gradient(loop, batch)
    assert want.abs().max() > 0
    order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(1))
    wide = {}
    for name in TOKEN_FIELDS:
        x = getattr(batch, name)
        if x is not None:
            wide[name] = torch.cat([x, x.new_zeros(batch.rows, 2)], 1)
    for other in (batch.select(order), replace(batch, **wide)):
        torch.testing.assert_close(gradient(loop, other), want, atol=1e-8, rtol=1e-5)
    for micro_tokens in (1, 40, 200):
        torch.testing.assert_close(gradient(loop, batch, micro_tokens), want, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("slug", METHODS)
def test_rows_that_are_skipped_have_no_gradient(slug):
    loop = lock_loop(compose(slug).recipe)
    batch = collected(loop)
    active = loop.recipe.loss.active(batch)
    if loop.value_head is not None:
        active |= batch.mask.any(1)
    torch.testing.assert_close(gradient(loop, batch.select(active)), gradient(loop, batch), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("slug", METHODS)
def test_the_first_ratio_is_one_and_the_first_divergence_zero(slug):
    recipe = compose(slug).recipe
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, epochs=1, minibatches=1))
    batch = collected(lock_loop(recipe))
    known, sampled = batch.logp_old.isfinite(), batch.mask & (batch.version >= 0)
    assert known[sampled].all() or not recipe.rollout.gives.behaviour
    sampled &= known
    loop = lock_loop(recipe)
    torch.testing.assert_close(loop.scores(batch, loop.world.policy).logp[sampled], batch.logp_old[sampled])
    log = loop.step()
    assert log.get("kl/ref", 0.0) == pytest.approx(0, abs=1e-6)
    if recipe.rollout.group_size == 0:
        assert not any(name.startswith(("ratio/", "kl/")) for name in log)
    elif torch.equal(sampled, batch.mask):
        assert log["ratio/mean"] == pytest.approx(1, abs=1e-5)
        assert log["ratio/max"] == pytest.approx(1, abs=1e-5)
        assert log["kl/behaviour"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("slug", METHODS)
def test_same_seed_same_bits_other_seed_other_bits(slug):
    runs = []
    for seed in (3, 3, 4):
        loop = lock_loop(compose(slug).recipe, seed=seed)
        for _ in range(3):
            loop.step()
        runs.append(weights(loop))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("slug", METHODS)
def test_a_state_that_is_saved_and_loaded_goes_on_to_the_same_bits(slug):
    one, two = lock_loop(compose(slug).recipe), lock_loop(compose(slug).recipe)
    for _ in range(2):
        one.step()
    assert alike(two.state(), one.state())
    two.restore(yaml.safe_load(yaml.safe_dump(one.state())), {k: v.clone() for k, v in one.tensors().items()})
    for _ in range(2):
        assert one.step() == two.step()
    assert torch.equal(weights(one), weights(two))


def judged(loop, temperature):
    """The held-out evaluation of a loop, on the prompts that it trains on, as a run makes it."""
    loop.world.task.heldout = tuple(loop.world.task.train)
    plan = SimpleNamespace(settings=SimpleNamespace(eval_prompts=16))
    log, samples = training.held_out(plan, loop, temperature=temperature)
    return log, [{k: s[k] for k in ("id", "prompt", "response", "stop", "length")} for s in samples]


@pytest.mark.parametrize("slug", METHODS)
def test_an_evaluation_has_nothing_of_what_the_method_adds_while_it_trains(slug, tmp_path):
    """No hint, prefix, mask, search, teacher or replay: GRPO with the policy that was saved answers the same; and a run
    that was evaluated in between goes on as one that was not."""
    loop, other, plain = (lock_loop(compose(x).recipe) for x in (slug, slug, "grpo"))
    for _ in range(2):
        loop.step()
        other.step()
        asked = seen_by(loop.world.engine)
        loop.world.policy.save(tmp_path)
        plain.world.policy.module.load_state_dict(load_policy(str(tmp_path)).module.state_dict())
        for temperature in (0.0, 1.0):
            before = copy.deepcopy(loop.state())
            log, samples = judged(loop, temperature)
            assert samples == judged(plain, temperature)[1]
            assert log["eval/n"] == 16 and alike(loop.state(), before)
        prompts = loop.world.task.train
        assert [r.context.tolist() for r in asked if r.n == 1 and not r.prefix][:16] == [
            list(p.tokens) for p in prompts
        ]
        assert all(r.n == 1 and not r.prefix and r.max_tokens is None for r in asked)
    assert loop.step() == other.step()
    assert torch.equal(weights(loop), weights(other))


def seen_by(engine):
    """What an engine is asked from now on."""
    asked, generate = [], type(engine).generate

    def watched(requests, *rest):
        asked.extend(requests)
        return generate(engine, requests, *rest)

    engine.generate = watched
    return asked


@pytest.mark.parametrize("slug", METHODS)
def test_the_written_recipe_builds_the_same_recipe(slug):
    p = training.plan(slug, Settings("tabular-lock:references=true,recorded=2"))
    again = training.plan_from(yaml.safe_load(yaml.safe_dump(p.written())))
    assert again.recipe == p.recipe
    assert again.written() == p.written()


@pytest.mark.parametrize("slug", METHODS)
def test_it_learns(slug):
    rises = []
    for seed in range(5):
        loop = lock_loop(compose(slug).recipe, seed=seed)
        start = loop.world.task.probe(loop.world.policy)["success"]
        for _ in range(40):
            loop.step()
        rises.append(loop.world.task.probe(loop.world.policy)["success"] - start)
    assert np.mean(rises) > LEARNS, rises


@pytest.mark.parametrize("slug", METHODS)
def test_an_aborted_rollout_trains_nothing_and_breaks_nothing(slug):
    loop = lock_loop(compose(slug).recipe)
    groups = loop.sample(0)
    groups[0].trajectories[0].reward = float("nan")
    batch = loop.credited(from_groups(groups, max_tokens=3))
    row = int((batch.trajectory == 0).nonzero()[0])
    assert not batch.mask[row].any()
    assert torch.isfinite(batch.advantage[batch.mask]).all()
