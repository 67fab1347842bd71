"""BGPO: the bounds by hand, ELBO samples by hand, separate backward passes, their memory, bad input, the command line."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anypolicy.cli.app import main
from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.denoising import DenoisingEngine
from anypolicy.errors import InputError
from anypolicy.evidence.memory import peak_saved_bytes
from anypolicy.families.language import fit
from anypolicy.methods.language.bgpo import BoundLoss, bgpo, bound, elbo_ratio
from anypolicy.methods.language.diffu_grpo import OnePassLoss, prompt_masks
from anypolicy.methods.language.vrpo_ol import RatioLoss
from anypolicy.parts.advantages import group_normalise
from anypolicy.parts.elbo import elbo_sample, random_mask
from anypolicy.policies.language.masked_diffusion import small_denoiser
from anypolicy.policies.language.table import TablePolicy
from anypolicy.stages.elbo import elbo_samples
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.tiny_add import TinyAdd
from tests.helpers import lock_loop, segment

D = (0.3, -0.1, 0.05, -0.4)


def values_and_slopes(f, d, a):
    d = torch.tensor([d], dtype=torch.float64, requires_grad=True)
    value = f(d, torch.tensor([a], dtype=torch.float64))
    value.sum().backward()
    return float(value.sum()), d.grad[0].tolist()


def lower(d, a):
    """R̂_lb of all masks at once."""
    return bound(d, a[:, None].expand(d.shape)).mean(1)


# --- sheet checks 1-4 ------------------------------------------------------------------------------------------------
def test_positive_advantage():
    value, slope = values_and_slopes(elbo_ratio, D, 1.5)
    assert value == pytest.approx(1.444792, abs=1e-6)
    assert slope == pytest.approx([0.361198] * 4, abs=1e-6)
    value, slope = values_and_slopes(lower, D, 1.5)
    assert value == pytest.approx(1.443750, abs=1e-6)
    assert slope == pytest.approx([0.375] * 4, abs=1e-12)


def test_negative_advantage():
    assert values_and_slopes(elbo_ratio, D, -1.5)[0] == pytest.approx(-1.444792, abs=1e-6)
    value, slope = values_and_slopes(lower, D, -1.5)
    assert value == pytest.approx(-1.491108, abs=1e-6)
    assert slope == pytest.approx([-0.506197, -0.339314, -0.394227, -0.251370], abs=1e-6)


@settings(max_examples=200)
@given(st.lists(st.floats(-6, 6), min_size=1, max_size=9), st.floats(-5, 5))
def test_it_is_a_lower_bound(d, a):
    x, advantage = torch.tensor([d], dtype=torch.float64), torch.tensor([a], dtype=torch.float64)
    whole, low = float(elbo_ratio(x, advantage)), float(lower(x, advantage))
    assert low <= whole + 1e-9 * (1 + abs(whole) + abs(low))


@pytest.mark.parametrize("a", [1.5, -1.5])
def test_where_the_bound_is_exact(a):
    zero = (0.0,) * 4
    assert values_and_slopes(lower, zero, a) == values_and_slopes(elbo_ratio, zero, a)
    assert values_and_slopes(lower, zero, a) == (pytest.approx(a), pytest.approx([a / 4] * 4))
    centred, flat = (0.3, -0.1, 0.2, -0.4), (0.7,) * 4  # mean 0; all equal
    at = centred if a > 0 else flat
    assert values_and_slopes(lower, at, a)[0] == pytest.approx(values_and_slopes(elbo_ratio, at, a)[0], abs=1e-12)
    assert values_and_slopes(lower, at, a)[1] == pytest.approx(values_and_slopes(elbo_ratio, at, a)[1], abs=1e-12)
    other = flat if a > 0 else centred
    assert values_and_slopes(lower, other, a)[0] < values_and_slopes(elbo_ratio, other, a)[0] - 1e-3


def test_the_wrong_pairing_bounds_from_above():
    d = torch.tensor(D, dtype=torch.float64)
    assert float(1.5 * d.exp().mean()) == pytest.approx(1.491108, abs=1e-6)
    assert float(-1.5 * (1 + d.mean())) == pytest.approx(-1.443750, abs=1e-6)
    assert 1.491108 >= 1.444792 and -1.443750 >= -1.444792


def test_an_unused_branch_cannot_overflow():
    d = torch.tensor([800.0, -800.0, 800.0], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    bound(d, advantage).sum().backward()
    assert torch.isfinite(d.grad).all()
    assert bound(d.detach(), -torch.ones(3, dtype=torch.float64), d_max=2.0)[0] == pytest.approx(-math.exp(2))


# --- sheet checks 5-6: the ELBO --------------------------------------------------------------------------------------
PAIR = {(): (math.log(0.5), math.log(0.4)), (1,): (math.log(0.8), None), (0,): (None, math.log(0.64))}
"""Log-probabilities of the two tokens a, b given which of them are seen."""


def exact(logp, length):
    """Mean and variance of one sample under the count of masks: every k and every set of k tokens."""
    values, weights = [], []
    for k in range(1, length + 1):
        sets = list(itertools.combinations(range(length), k))
        for masked in sets:
            values.append(length / k * sum(logp(masked)[i] for i in masked))
            weights.append(1 / length / len(sets))
    v, w = np.array(values), np.array(weights)
    mean = float(w @ v)
    return mean, float(w @ (v - mean) ** 2)


def pair_logp(masked):
    return PAIR[tuple(i for i in range(2) if i not in masked)]


def sampled(logp, length, draw, n):
    """Samples of ℓ through our own masks."""
    rng = torch.Generator().manual_seed(0)
    uniform = torch.rand(n, length, generator=rng, dtype=torch.float64)
    level = torch.rand(n, generator=rng, dtype=torch.float64)
    masked, weight = random_mask(uniform, level, torch.ones(n, length, dtype=torch.bool), draw)
    table = torch.zeros(2**length, length, dtype=torch.float64)  # by the masked set as a binary number
    for k in range(1, length + 1):
        for m in itertools.combinations(range(length), k):
            table[sum(2**i for i in m), list(m)] = torch.tensor([logp(m)[i] for i in m], dtype=torch.float64)
    values = table[(masked * 2 ** torch.arange(length)).sum(1)]
    return elbo_sample(values, masked, weight)


def test_elbo_of_two_tokens():
    mean, variance = exact(pair_logp, 2)
    want = (math.log(0.5) + math.log(0.4) + math.log(0.8) + math.log(0.64)) / 2
    assert mean == pytest.approx(want, abs=1e-12)
    assert mean == pytest.approx(-1.139434, abs=1e-6)
    assert mean == pytest.approx(math.log(0.32), abs=1e-12)
    assert variance == pytest.approx(0.245800, abs=1e-6)
    x = sampled(pair_logp, 2, "count", 200_000)
    assert float(x.mean()) == pytest.approx(mean, abs=0.005)
    assert float(x.var()) == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize(("least", "variance"), [(1e-3, 3.011770), (1e-2, 2.438400)])
def test_elbo_by_noise_level_has_far_more_variance(least, variance):
    """∫ over t of E[ℓ²] with the clamp: the two single masks and the double one by hand."""
    alone, both = (math.log(0.8), math.log(0.64)), math.log(0.5) + math.log(0.4)

    def second(t):
        return (t * (1 - t) * (alone[0] ** 2 + alone[1] ** 2) + t**2 * both**2) / t**2

    singles, low = alone[0] ** 2 + alone[1] ** 2, -math.log(least)
    integral = least * second(least) + singles * (low - (1 - least)) + both**2 * (1 - least)
    mean = sum(alone) * ((1 - least) - (1 - least**2) / 2) + both * (1 - least**2) / 2
    mean += least * (sum(alone) * (1 - least) + both * least)
    assert integral - mean**2 == pytest.approx(variance, rel=1e-5)
    if least == 1e-3:
        assert mean == pytest.approx(-1.139435, abs=1e-6)
        x = sampled(pair_logp, 2, "t", 200_000)
        assert float(x.mean()) == pytest.approx(mean, abs=0.02)
        assert float(x.var()) == pytest.approx(variance, rel=0.2)
        assert float((x == 0).double().mean()) == pytest.approx(1 / 3, abs=0.005)  # ∫ (1 − t)² dt: not drawn again


def test_elbo_of_three_independent_tokens():
    logp = tuple(math.log(p) for p in (0.5, 0.25, 0.8))
    mean, variance = exact(lambda _: logp, 3)
    assert mean == pytest.approx(-2.302585, abs=1e-6)
    assert mean == pytest.approx(sum(logp), abs=1e-12)
    assert variance == pytest.approx(0.855948, abs=1e-6)
    policy = TablePolicy(torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.8, 0.2]]], dtype=torch.float64)))
    batch = from_groups([Group(str(i), Prompt(""), [Trajectory("", [segment([0, 0, 0])], 1.0)]) for i in range(4000)],
                        torch.float64)  # fmt: skip
    batch = replace(batch, row_seed=torch.arange(batch.rows))
    x = torch.cat(list(elbo_samples(policy, batch, batch.mask, 1.0, 5, "count")))
    assert float(x.mean()) == pytest.approx(mean, abs=0.03)
    assert float(x.var()) == pytest.approx(variance, rel=0.05)


def test_the_count_never_draws_an_empty_mask_and_masks_follow_their_uniforms():
    rng = torch.Generator().manual_seed(0)
    tokens = torch.rand(3000, 7, generator=rng) < 0.6
    uniform = torch.rand(3000, 7, generator=rng, dtype=torch.float64)
    level = torch.rand(3000, generator=rng, dtype=torch.float64)
    masked, weight = random_mask(uniform, level, tokens, "count")
    n, k = tokens.sum(1), masked.sum(1)
    assert not (masked & ~tokens).any()
    assert (k[n > 0] >= 1).all() and (k <= n).all()
    torch.testing.assert_close(weight[n > 0], n[n > 0] / k[n > 0].double())
    for size in (2, 5):
        seen = torch.bincount(k[n == size], minlength=size + 1)[1:].double()
        assert (seen / seen.sum() - 1 / size).abs().max() < 0.06
    masked, weight = random_mask(uniform, level, tokens, "t")
    assert torch.equal(masked, tokens & (uniform < level.clamp(min=1e-3)[:, None]))
    torch.testing.assert_close(weight, 1 / level.clamp(min=1e-3))


# --- sheet check 7 ---------------------------------------------------------------------------------------------------
def test_advantages_have_the_population_deviation():
    r = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0], dtype=torch.float64)
    group = torch.zeros(8, dtype=torch.long)
    ours = bgpo().advantage
    for std, high, low in (("population", 1.732051, -0.577350), ("sample", 1.620185, -0.540062)):
        a = group_normalise(r, group, std=std, eps=0.0)
        assert sorted(set(np.round(a.tolist(), 6))) == [low, high]
    assert (ours.std, ours.eps) == ("population", 1e-6)


# --- sheet check 8: separate backward passes -------------------------------------------------------------------------
def small(seed=0):
    policy = small_denoiser(
        vocabulary=11, layers=1, width=16, heads=2, context_length=16, seed=seed, eos_id=9, mask_id=10
    )
    policy.module.double()
    return policy


def responses(advantages=(1.7, -0.6, 0.4, -1.1), length=5):
    """One group for each pair of advantages, random tokens, float64."""
    rng, groups = np.random.default_rng(0), []
    for g in range(len(advantages) // 2):
        prompt = rng.integers(0, 9, 3 + g).tolist()
        ts = [Trajectory(f"{g}/{i}", [segment(rng.integers(0, 10, length).tolist(), prompt)], 0.0) for i in range(2)]
        groups.append(Group(str(g), Prompt(str(g)), ts))
    batch = from_groups(groups, torch.float64, length)
    a = torch.tensor(advantages, dtype=torch.float64)[:, None].expand(batch.response.shape).clone()
    return replace(batch, advantage=a, totals=batch.counted(), row_seed=torch.arange(batch.rows) + 7)


def backward(policy, parts):
    for p in policy.module.parameters():
        p.grad = None
    for part in parts:
        torch.stack(list(part.terms.values())).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])


def off_policy(loss, batch):
    """The batch with what other weights say on the same masks."""
    with torch.no_grad():
        return replace(batch, before=loss.before(small(1), batch, 1.0))


@pytest.mark.parametrize("draw", ["count", "t"])
@pytest.mark.parametrize("moved", [False, True])
def test_one_after_the_other_is_one_big_backward(draw, moved):
    policy, loss = small(), BoundLoss(6, draw)
    batch = off_policy(loss, responses()) if moved else responses()
    apart = backward(policy, loss.passes(policy, batch, 1.0))
    parts = list(loss.passes(policy, batch, 1.0))
    assert len(parts) == 6
    for p in policy.module.parameters():
        p.grad = None
    torch.stack([p.terms["bound"] for p in parts]).sum().backward()
    whole = torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(apart, whole, atol=1e-10, rtol=1e-10)


def test_on_policy_it_is_the_gradient_of_the_ratio_and_off_policy_it_is_not():
    policy, batch = small(), responses()
    ours, theirs = (backward(policy, loss.passes(policy, batch, 1.0)) for loss in (BoundLoss(4), RatioLoss(4)))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
    moved = off_policy(BoundLoss(4), batch)
    ours, theirs = (backward(policy, loss.passes(policy, moved, 1.0)) for loss in (BoundLoss(4), RatioLoss(4)))
    assert (ours - theirs).abs().max() > 1e-3 * theirs.abs().max()
    values = [sum(float(v) for part in loss.passes(policy, moved, 1.0) for v in part.terms.values())
              for loss in (BoundLoss(4), RatioLoss(4))]  # fmt: skip
    assert values[0] >= values[1]  # losses are minus the objectives


def test_the_gradient_is_that_of_sums_of_token_log_probabilities():
    """On policy: ∇ −(1/G) Σ_i A_i mean_j ℓ_ij, written out with the masks of the same seeds."""
    policy, batch = small(), responses()
    ours = backward(policy, BoundLoss(3).passes(policy, batch, 1.0))
    for p in policy.module.parameters():
        p.grad = None
    ell = torch.stack(list(elbo_samples(policy, batch, batch.mask, 1.0, 3, "count"))).mean(0)
    (-(batch.advantage[:, 0] * ell).mean()).backward()
    whole = torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])
    torch.testing.assert_close(ours, whole, atol=1e-12, rtol=1e-9)


def test_old_and_new_weights_see_the_same_masks():
    policy, batch, loss = small(), responses(), BoundLoss(4)
    with torch.no_grad():
        same = replace(batch, before=loss.before(policy, batch, 1.0))
    for one, other in zip(loss.passes(policy, batch, 1.0), loss.passes(policy, same, 1.0), strict=True):
        assert float(one.terms["bound"].detach()) == pytest.approx(float(other.terms["bound"].detach()), abs=1e-12)
        assert float(other.metrics["elbo/gap_max"]) == pytest.approx(0, abs=1e-12)


def peak_bytes(policy, loss, batch):
    """The most bytes that autograd had saved at a time, parameters aside."""
    return peak_saved_bytes(lambda: backward(policy, loss.passes(policy, batch, 1.0)), policy.module.parameters())


def test_memory_does_not_grow_with_the_masks():
    policy, batch = small(), responses(length=8)
    counts = (1, 2, 4, 16, 64)
    flat = {n: peak_bytes(policy, BoundLoss(n), batch) for n in counts}
    grown = {n: peak_bytes(policy, RatioLoss(n), batch) for n in counts}
    assert flat[1] > 10_000
    assert max(flat.values()) <= 1.1 * flat[1]  # masks of other sizes save logits of other sizes
    assert max(flat[n] for n in (4, 16, 64)) <= 1.1 * flat[2]
    for n in counts[1:]:
        assert grown[n] == pytest.approx(n * grown[1], rel=0.1)


def test_groups_without_signal_cost_no_pass():
    policy, loss = small(), BoundLoss(2)
    batch = responses((0.0, 0.0, 0.0, 0.0))
    assert not loss.active(batch).any()
    loop = lock_loop(compose("bgpo").recipe)
    loop.world.task.score = lambda prompt, response, text: Score(1.0, True)
    calls = []
    loop.world.policy.score_masked = lambda *a, **k: calls.append(a)
    for parts in (1, 2):
        loop.recipe = replace(loop.recipe, optimiser=replace(loop.recipe.optimiser, minibatches=parts))
        assert loop.step()["updates"] == 0
    assert not calls
    assert policy is not None


def test_a_group_of_one_has_no_advantage_and_is_refused():
    assert group_normalise(torch.tensor([1.0]), torch.tensor([0]), std="population").tolist() == [0.0]
    from anypolicy.stages.checks import check

    with pytest.raises(InputError, match="at least 2"):
        check(bgpo(group_size=1), 8)


def test_a_reward_that_is_no_number_is_an_error():
    loop = lock_loop(compose("bgpo").recipe)
    loop.world = replace(loop.world, reward_function=lambda prompt, texts: [float("nan")] * len(texts))
    with pytest.raises(InputError, match="finite"):
        loop.step()


# --- several updates -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slug", ["bgpo", "vrpo-ol", "diffu-grpo"])
def test_several_updates_compare_with_the_weights_before_the_first(slug):
    """With two mini-batches the first compares equal weights; with a second pass ratios leave 1."""
    recipe = compose(slug).recipe
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, epochs=2, minibatches=2))
    loop = lock_loop(recipe)
    batch, _ = loop.collect()
    for epoch, before in enumerate(loop.before(batch)):
        active = recipe.loss.active(batch)
        part = replace(batch, row_seed=loop.row_seeds(batch, epoch), before=before).select(active)
        gaps = [float(x.metrics["kl/behaviour"]) for x in recipe.loss.passes(loop.world.policy, part, 1.0)]
        assert gaps == pytest.approx([0.0] * len(gaps), abs=1e-6)
    log = loop.update(batch)
    assert log["updates"] == 4
    assert log["ratio/max"] > 1.001


def test_micro_batches_do_not_change_what_is_remembered():
    recipe = compose("bgpo").recipe
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, epochs=2))
    loop = lock_loop(recipe)
    batch, _ = loop.collect()
    whole = loop.before(batch)
    loop.micro_tokens = 30
    for a, b in zip(whole, loop.before(batch), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(whole[0], whole[1])


# --- diffu-GRPO ------------------------------------------------------------------------------------------------------
def test_prompt_masks_hide_prompt_tokens_alone():
    batch = responses((1.0,) * 8)
    hidden = prompt_masks(batch, 0.5)
    seen = batch.context_valid[batch.context_index]
    assert hidden.any() and not (hidden & ~seen).any()
    assert not prompt_masks(batch, 0.0).any()
    order = torch.tensor([3, 1])
    part = batch.select(order)
    assert torch.equal(prompt_masks(part, 0.5), hidden[order][:, -part.context.shape[1] :])


def test_one_pass_masks_the_whole_response():
    policy, batch = small(), responses()
    [part] = OnePassLoss(prompt_mask=0.0).passes(policy, batch, 1.0)
    assert float(part.terms["policy"].detach()) == pytest.approx(-float(batch.advantage[:, 0].mean()), abs=1e-12)
    logp = OnePassLoss(prompt_mask=0.0).before(policy, batch, 1.0)
    torch.testing.assert_close(logp, policy.score(batch, 1.0).logp)
    other = replace(batch, response=(batch.response + 1) % 9)
    masked = policy.masked_logits(batch, batch.mask)
    torch.testing.assert_close(policy.masked_logits(other, batch.mask), masked)  # no response token is seen


# --- the loop on a real network --------------------------------------------------------------------------------------
def test_bgpo_and_vrpo_with_the_same_masks_take_the_same_path():
    paths = []
    for slug in ("bgpo", "vrpo-ol"):
        task = TinyAdd(0, base_accuracy=0.0, policy="masked-diffusion", prompts=12)
        task.score = lambda prompt, response, text: Score(float(response.sum()), False)
        policy = task.make_policy(0)
        policy.module.double()
        recipe = compose(slug, {slug: {"samples": 3, "group_size": 4}}).recipe
        recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=1e-2, kind="sgd"))
        *_, (log, _) = fit(recipe, task, policy, steps=3, prompts=3)
        assert log["updates"] == 1
        paths.append(torch.cat([p.detach().flatten() for p in policy.module.parameters()]))
    start = torch.cat(
        [
            p.detach().flatten()
            for p in TinyAdd(0, base_accuracy=0.0, policy="masked-diffusion")
            .make_policy(0)
            .module.double()
            .parameters()
        ]
    )
    assert (paths[0] - start).abs().max() > 1e-4
    torch.testing.assert_close(paths[0], paths[1], atol=1e-10, rtol=1e-8)


def test_a_selection_that_drops_tokens_leaves_them_in_sight():
    policy, batch, loss = small(), responses(), BoundLoss(1)
    mask = batch.mask.clone()
    mask[:, 0] = False
    part = replace(batch, mask=mask)
    changed = replace(part, response=torch.cat([(batch.response[:, :1] + 1) % 9, batch.response[:, 1:]], 1))
    a, b = (next(iter(elbo_samples(policy, x, x.mask, 1.0, 1, "count"))) for x in (part, changed))
    assert (a - b).abs().min() > 0
    assert loss.needs.whole_responses


# --- command line ----------------------------------------------------------------------------------------------------
TINY = "tiny-add:policy=masked-diffusion,base_accuracy=0.0,prompts=24,heldout=8"


@pytest.mark.parametrize("slug", ["bgpo", "diffu-grpo"])
def test_a_run_that_stopped_goes_on_to_the_same_bits(slug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text("def r(prompt, responses):\n    return [float(len(x)) for x in responses]\n")
    rows = [json.dumps({"prompt": f"say {i}", "answer": str(i)}) for i in range(12)]
    (tmp_path / "task.jsonl").write_text("\n".join(rows))
    command = [
        "train",
        slug,
        "--task",
        "task.jsonl",
        "--policy",
        "masked-diffusion:layers=1,width=16,heads=2,context=16",
    ]
    command += [
        "--max-tokens",
        "4",
        "--block-length",
        "2",
        "--denoising-steps",
        "2",
        "--prompts",
        "4",
        "--group-size",
        "4",
    ]
    command += ["--reward", "r.py:r", "--minibatches", "2", "--trackers", "--quiet", "--checkpoint-every", "2"]
    command += ["--bgpo.samples", "2"] if slug == "bgpo" else []
    command += ["--eval-every", "2"]
    assert main([*command, "--steps", "4", "--out", "whole"]) == 0
    assert main([*command, "--steps", "2", "--out", "part"]) == 0
    assert main(["resume", "part", "--steps", "4", "--quiet"]) == 0
    assert (tmp_path / "part" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    first, second = ((tmp_path / n / "policy" / "model.safetensors").read_bytes() for n in ("whole", "part"))
    assert first == second
    assert "ratio/max" in (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_show_and_explain(capsys):
    assert main(["show", "bgpo"]) == 0
    assert (
        "--bgpo.samples  masks of a response whose terms make up its bound (at least 1; default 16)"
        in capsys.readouterr().out
    )
    assert main(["explain", "bgpo+dr-grpo.advantage", "--task", TINY]) == 0
    assert "BoundLoss(samples=16" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--task", "tiny-add:base_accuracy=0.0"], "needs a masked-diffusion policy"),
        (["--task", TINY, "--bgpo.samples", "0"], "of at least 1"),
        (["--task", TINY, "--denoising-steps", "1", "--block-length", "4"], "need at least 2"),
        (["--task", TINY, "--block-length", "0"], "above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(more, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "bgpo", *more, "--trackers", "--quiet"]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_a_causal_policy_takes_no_denoising_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "grpo", "--task", "tiny-add:base_accuracy=0.0", "--block-length", "4", "--trackers", "--quiet"]
    assert main(command) == 2
    assert "writes token by token" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(InputError, match="masked-diffusion"):
        DenoisingEngine(TinyAdd(0, base_accuracy=0.0).make_policy(0))
