"""SePPO: the flipper's worked numbers, references, identities with its rivals, bad numbers."""

import math

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.loops.diffusion import Batch, DiffusionLoop, Pool
from anypolicy.methods.diffusion import seppo as file
from anypolicy.methods.diffusion.diffusion_dpo import diffusion_dpo
from anypolicy.methods.diffusion.diffusion_spin import diffusion_spin
from anypolicy.methods.diffusion.seppo import flipped_margin, flipper, seppo
from anypolicy.parts.preference import sigmoid
from anypolicy.policies.diffusion.denoisers import PointDiffusion, copied, pair_errors
from anypolicy.tasks.diffusion.ring8 import Points

BETTER, WORSE = (0.90, 1.00, 1.20, 1.10), (1.05, 1.00, 1.20, 1.10)
"""(m_w, m_ref,w, m_r, m_ref,r)"""
SMALL = {"beta": 2.0, "batch": 8, "lr": 0.01, "weight_decay": 0.0, "stage": 2}


def worked(*cases, aaf="sign", beta=10.0):
    """Signs, insides, mean loss and gradients (summed loss) of (m_w, m_ref,w, m_r, m_ref,r)."""
    m_w, ref_w, m_r, ref_r = torch.tensor(cases, dtype=torch.float64).T
    m_w, m_r = (x.clone().requires_grad_() for x in (m_w, m_r))
    sign = flipper(m_w, ref_w, aaf)
    inside = flipped_margin(m_w, m_r, ref_w, ref_r, beta, sign)
    loss = sigmoid(inside, 1.0)
    loss.sum().backward()
    return sign.tolist(), inside.tolist(), float(loss.mean()), m_w.grad.tolist(), m_r.grad.tolist()


def near(*values):
    return pytest.approx(list(values), abs=1e-6)


def test_the_model_is_ahead():
    sign, inside, loss, up, down = worked(BETTER)
    assert sign == [1] and inside == near(1.0) and loss == pytest.approx(0.313262, abs=1e-6)
    assert up == near(1.344707) and down == near(-1.344707)
    assert worked(BETTER, aaf="indicator")[1:] == worked(BETTER, aaf="off")[1:] == (inside, loss, up, down)


def test_the_reference_is_ahead():
    sign, inside, loss, up, down = worked(WORSE)
    assert sign == [-1] and inside == near(-0.75) and loss == pytest.approx(1.136871, abs=1e-6)
    assert up == near(3.395893) and down == near(3.395893)
    sign, inside, loss, _, down = worked(WORSE, aaf="indicator")
    assert sign == [0] and inside == near(-0.25) and loss == pytest.approx(0.825939, abs=1e-6) and down == [0]
    sign, inside, loss, *_ = worked(WORSE, aaf="off")
    assert sign == [1] and inside == near(0.25) and loss == pytest.approx(0.575939, abs=1e-6)


@pytest.mark.parametrize("aaf", ["sign", "indicator", "off"])
def test_the_first_update(aaf):
    sign, _, loss, up, down = worked((1.0, 1.0, 1.0, 1.0), aaf=aaf)
    assert loss == pytest.approx(0.693147, abs=1e-6) and up == near(2.5)
    assert (sign, down) == (([1], [-2.5]) if aaf == "off" else ([0], [0]))


def test_the_sign_is_one_of_every_sample():
    sign, _, loss, *_ = worked(BETTER, WORSE)
    assert sign == [1, -1] and loss == pytest.approx(0.725066, abs=1e-6)


def test_the_quoted_loss_of_the_negative_sign():
    """−log σ(−½β(Δ_w + Δ_r)) where the reference is ahead, Diffusion-DPO's where the model is."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        m_w, ref_w, m_r, ref_r = torch.rand(4, 1, generator=rng, dtype=torch.float64)
        beta = float(torch.rand((), generator=rng)) * 30
        s = 1.0 if m_w < ref_w else -1.0
        want = math.log1p(math.exp(0.5 * beta * float((m_w - ref_w) - s * (m_r - ref_r))))
        case = tuple(float(x) for x in (m_w, ref_w, m_r, ref_r))
        assert worked(case, beta=beta)[2] == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("aaf", ["sign", "indicator"])
def test_the_sign_carries_no_gradient(aaf):
    """Finite differences over the parameters of a network agree with autograd."""
    model = PointDiffusion(0, hidden=(6,), steps=5)
    model.module.double()
    model.kept = model.kept.double()
    rng = torch.Generator().manual_seed(3)
    reference = {k: v + 0.05 * torch.randn(v.shape, generator=rng) for k, v in copied(model.module).items()}
    winner, rival, noise = (torch.randn(12, 2, generator=rng, dtype=torch.float64) for _ in range(3))
    t, condition = torch.randint(5, (12,), generator=rng), model.condition([0] * 12)

    def loss():
        m_w, m_r = pair_errors(model, winner, rival, noise, t, condition)
        before = pair_errors(model, winner, rival, noise, t, condition, reference)
        sign = flipper(m_w, before[0], aaf)
        return sigmoid(flipped_margin(m_w, m_r, *before, 10.0, sign), 1.0).mean(), sign

    value, sign = loss()
    assert len(set(sign.tolist())) == 2
    value.backward()
    for p in model.module.parameters():
        for i in torch.randint(p.numel(), (3,), generator=rng).tolist():
            with torch.no_grad():
                flat, h = p.view(-1), 1e-6
                flat[i] += h
                up = float(loss()[0])
                flat[i] -= 2 * h
                down = float(loss()[0])
                flat[i] += h
            assert (up - down) / (2 * h) == pytest.approx(float(p.grad.view(-1)[i]), rel=1e-5, abs=1e-8)


def learners(*recipes):
    return [recipe.learner(PointDiffusion(0, hidden=(16,)), 0) for recipe in recipes]


def batches(model, n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [Batch(torch.randn(8, 2, generator=rng) + 1, model.condition([0] * 8), torch.randn(8, 2, generator=rng))
            for _ in range(n)]  # fmt: skip


def test_without_flipper_and_with_given_losers_it_is_diffusion_dpo():
    more = {k: v for k, v in SMALL.items() if k != "stage"}
    a, b = learners(seppo(**SMALL, aaf="off", ref_strategy="initial"), diffusion_dpo(**more, warmup=0))
    for step, batch in enumerate(batches(a.model, 5)):
        first = a.learn(batch, batch.loser, a.pools["checkpoints"][0], step, torch.Generator().manual_seed(step))
        second = b.update(batch, step, torch.Generator().manual_seed(step))
        assert first["loss/preference"] == second["loss/preference"]
    assert all(torch.equal(x, y) for x, y in zip(a.model.module.parameters(), b.model.module.parameters(), strict=True))


def test_one_checkpoint_leaves_no_choice():
    kept = SMALL | {"stage": 100}
    ends = []
    for recipe in (seppo(**kept), seppo(**kept, ref_strategy="initial"), seppo(**kept, ref_strategy="latest")):
        [a] = learners(recipe)
        for step, batch in enumerate(batches(a.model, 4)):
            a.update(batch, step, torch.Generator().manual_seed(step))
        ends.append(torch.cat([p.flatten() for p in a.model.module.parameters()]))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_spin_is_the_last_checkpoint_without_flipper():
    assert diffusion_spin(**SMALL) == seppo(**SMALL, aaf="off", ref_strategy="latest")
    assert diffusion_spin() == seppo(aaf="off", ref_strategy="latest")
    [a] = learners(diffusion_spin(**SMALL))
    for step, batch in enumerate(batches(a.model, 4)):
        log = a.update(batch, step, torch.Generator().manual_seed(step))
        assert log["sign"] == 1 and log["reference"] == 0 and len(a.pools["checkpoints"]) == 1
    now = copied(a.model.module)
    assert all(torch.equal(now[k], a.pools["checkpoints"][0][k]) for k in now)


def test_the_initial_reference_is_kept_for_good():
    [a] = learners(seppo(**SMALL, ref_strategy="initial"))
    first = copied(a.model.module)
    for step, batch in enumerate(batches(a.model, 6)):
        a.update(batch, step, torch.Generator().manual_seed(step))
    assert len(a.pools["checkpoints"]) == 1
    assert all(torch.equal(first[k], a.pools["checkpoints"][0][k]) for k in first)


def test_references_are_drawn_uniformly():
    pool, module = Pool(), torch.nn.Linear(1, 1)
    for _ in range(7):
        pool.add(module)
    rng = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([pool.draw(rng) for _ in range(7000)]), minlength=7)
    assert len(counts) == 7 and (counts - 1000).abs().max() < 4 * math.sqrt(7000 / 7 * 6 / 7)


def test_checkpoints_come_at_the_end_of_stages_and_are_copies():
    [a] = learners(seppo(**SMALL))
    first = copied(a.model.module)
    sizes = []
    for step, batch in enumerate(batches(a.model, 6)):
        a.update(batch, step, torch.Generator().manual_seed(step))
        sizes.append(len(a.pools["checkpoints"]))
    assert sizes == [1, 2, 2, 3, 3, 4]
    assert all(torch.equal(first[k], a.pools["checkpoints"][0][k]) for k in first)
    assert not any(v.requires_grad for v in a.pools["checkpoints"][1].values())
    [b] = learners(seppo(**SMALL, pool=2))
    for step, batch in enumerate(batches(b.model, 6)):
        b.update(batch, step, torch.Generator().manual_seed(step))
    assert len(b.pools["checkpoints"]) == 2


def test_the_reference_of_the_loss_made_the_rivals(monkeypatch):
    [a] = learners(seppo(**SMALL))
    made, asked = [], []
    sampled, errors = file.sampled, file.pair_errors
    monkeypatch.setattr(file, "sampled", lambda m, c, g, w: (made.append(w), sampled(m, c, g, w))[1])
    monkeypatch.setattr(file, "pair_errors", lambda *x: (asked.append(x[6] if len(x) > 6 else None), errors(*x))[1])
    drawn = []
    for step, batch in enumerate(batches(a.model, 30)):
        drawn.append(a.update(batch, step, torch.Generator().manual_seed(step))["reference"])
    assert asked == [w for pair in zip(made, [None] * 30, strict=True) for w in pair]
    assert len(set(drawn)) > 4 and len(made) == 30


def test_one_reference_for_a_stage_if_wished():
    drawn = {}
    for every in ("update", "stage"):
        [a] = learners(seppo(**(SMALL | {"stage": 5}), ref_every=every))
        drawn[every] = [a.update(b, i, torch.Generator().manual_seed(i))["reference"] for i, b in
                        enumerate(batches(a.model, 40))]  # fmt: skip
    assert all(len(set(drawn["stage"][i : i + 5])) == 1 for i in range(0, 40, 5))
    assert any(len(set(drawn["update"][i : i + 5])) > 1 for i in range(0, 40, 5))


def test_the_rivals_of_the_first_update_count_for_nothing():
    [a] = learners(seppo(**SMALL))
    log = a.update(batches(a.model, 1)[0], 0, torch.Generator().manual_seed(0))
    assert log["sign"] == 0 and log["behind"] == 0 and log["loss/preference"] == pytest.approx(0.693147, abs=1e-6)
    [b] = learners(seppo(**SMALL, aaf="off"))
    assert b.update(batches(b.model, 1)[0], 0, torch.Generator().manual_seed(0))["sign"] == 1


def test_a_single_winner_is_enough():
    loop = DiffusionLoop(seppo(**SMALL), PointDiffusion(0, hidden=(16,)), Points(torch.tensor([[1.0, 0.0]])), None, 0)
    assert math.isfinite(loop.run(3)["loss/preference"])
    with pytest.raises(InputError, match="at least one"):
        DiffusionLoop(seppo(**SMALL), PointDiffusion(0, hidden=(16,)), Points(torch.zeros(0, 2)), None, 0)


def test_impossible_settings():
    with pytest.raises(InputError, match="empty"):
        Pool().draw(torch.Generator())
    with pytest.raises(InputError, match="capacity"):
        seppo(pool=0).learner(PointDiffusion(0, hidden=(8,)), 0)
    with pytest.raises(InputError, match="stage"):
        seppo(stage=0)


@pytest.mark.parametrize("aaf", ["sign", "indicator", "off"])
def test_nan_is_refused_and_moves_nothing(f64, aaf):
    with pytest.raises(InputError, match="NaN"):
        flipper(f64(1.0, math.nan), f64(1.0, 1.0), aaf)
    [a] = learners(seppo(**SMALL, aaf=aaf))
    before, bad = copied(a.model.module), batches(a.model, 1)[0]
    bad.winner[3] = math.nan
    with pytest.raises(InputError):
        a.update(bad, 0, torch.Generator())
    assert all(torch.equal(before[k], v) for k, v in copied(a.model.module).items())


def test_paper_defaults():
    s, recipe = seppo().learner, seppo()
    assert (s.beta, s.stage, s.lr, s.clip, recipe.batch, s.aaf, s.ref_strategy) == (
        5000,
        30,
        2.05e-5,
        1,
        2048,
        "sign",
        "random",
    )
    dpo = diffusion_dpo()
    assert (dpo.learner.beta, dpo.learner.warmup, dpo.learner.lr, dpo.batch) == (5000, 500, 2.05e-5, 2048)
