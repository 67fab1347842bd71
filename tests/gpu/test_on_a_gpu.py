"""What a pretended GPU cannot say: that a real one gives the processor's numbers, up to rounding. Skipped where there is
none; `make test-gpu` runs these alone."""

import copy

import numpy as np
import pytest
import torch

import anypolicy as ap
from anypolicy import catalogue
from anypolicy.compose import compose
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.families import control
from anypolicy.learners.base import device_of, tensors_of
from anypolicy.policies.language.load import load_policy, placed
from anypolicy.runs.devices import memory_errors
from tests.conformance import test_every_controller as controllers
from tests.conformance import test_every_diffusion_method as denoisers
from tests.conformance.test_every_controller import demonstrations  # noqa: F401
from tests.conformance.test_every_device import POLICIES, SMALL, files, weights  # noqa: F401
from tests.helpers import lock_loop
from tests.methods.test_sac import batch, learner_of
from tests.policies.test_causal_lm import CONFIGS, batch_of, sampled
from tests.policies.test_causal_lm import policy as small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
GPU = torch.device("cuda", 0)
NEAR = {"atol": 2e-4, "rtol": 1e-3}


@pytest.mark.parametrize("slug", sorted(catalogue.methods()))
def test_a_language_method_learns_what_it_learns_on_the_processor(slug):
    loops = [lock_loop(compose(slug).recipe, device=device) for device in ("cpu", "cuda")]
    for _ in range(3):
        one, other = (loop.step() for loop in loops)
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    one, other = (weights(loop.world.policy.module) for loop in loops)
    for name, x in one.items():
        torch.testing.assert_close(other[name], x, **NEAR)


@pytest.mark.parametrize("family", CONFIGS)
def test_scores_gradients_and_greedy_responses(family):
    """Packed and plain, of every kind of model that has a packed pass."""
    here, there = small(family), placed(small(family), GPU)
    batch = batch_of(sampled(here))
    for name in ("score", "score_plain"):
        found = []
        for policy in (here, there):
            policy.module.zero_grad()
            scores = getattr(policy, name)(batch, 0.8, entropy=True)
            (scores.logp.sum() + scores.entropy.sum()).backward()
            grads = [p.grad.cpu() for p in policy.module.parameters()]
            found.append([scores.logp.detach(), scores.entropy.detach(), *grads])
        for x, y in zip(*found, strict=True):
            torch.testing.assert_close(y, x, **NEAR)
    rng = [torch.Generator().manual_seed(0) for _ in range(2)]
    requests = [Request(np.array(c, np.int64), 1) for c in ([5, 6, 7], [8, 9])]
    made = [NativeEngine(p).generate(requests, Sampling(12, 0.0), g) for p, g in zip((here, there), rng, strict=True)]
    for (x, _), (y, _) in zip(*([row[0] for row in one] for one in made), strict=True):
        assert x.response.tolist() == y.response.tolist()
        torch.testing.assert_close(torch.tensor(y.logp), torch.tensor(x.logp), **NEAR)


def test_what_bfloat16_samples_is_what_it_scores():
    policy = placed(small("llama", torch.bfloat16), GPU)
    batch = batch_of(sampled(policy, 8))
    assert float((policy.score(batch, 1.0).logp - batch.logp_old)[batch.valid].abs().max()) < 0.1


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_is_trained_resumed_and_evaluated(kind, files, tmp_path):  # noqa: F811
    method, given = POLICIES[kind]
    given = SMALL | {"eval_every": 2, "checkpoint_every": 2, "trackers": (), "quiet": True} | given
    given = {k: files.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    run = ap.train(method, out=tmp_path / "run", steps=2, device="cuda", **given)
    assert run.policy.device == GPU
    assert ap.resume(tmp_path / "run", steps=4, device="cpu", quiet=True).policy.device.type == "cpu"
    last = ap.resume(tmp_path / "run", steps=6, device="auto", quiet=True)
    assert last.policy.device == GPU and last.rows[-1]["step"] == 6
    on = [ap.evaluate(tmp_path / "run", device=device) for device in ("cpu", "cuda")]
    assert on[1] == pytest.approx(on[0], rel=0.05, abs=0.05)


@pytest.mark.parametrize("slug", controllers.METHODS)
def test_a_controller(slug, tmp_path, demonstrations):  # noqa: F811
    run = controllers.trained(slug, tmp_path / "run", 32, demonstrations, device="cuda")
    assert device_of(run.learner) == GPU
    again = control.resume(tmp_path / "run", steps=64, device="cpu", quiet=True)
    assert all(x.isfinite().all() for x in tensors_of(again.learner).values())
    assert control.evaluate_run(tmp_path / "run", device="cuda")["eval/n"] == 1


def test_an_update_of_sac_is_the_processors():
    one, other, data = learner_of(), learner_of(), batch()
    for module in other.modules.values():
        module.to(GPU)
    rng = [torch.Generator().manual_seed(1) for _ in range(2)]
    for _ in range(3):
        a, b = one.update([data], rng[0]), other.update([data.to(GPU)], rng[1])
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    theirs = {k: x.cpu() for k, x in tensors_of(other).items()}
    for name, x in tensors_of(one).items():
        torch.testing.assert_close(theirs[name], x, **NEAR)


@pytest.mark.parametrize("slug", denoisers.METHODS)
def test_a_diffusion_method(slug, tmp_path):
    whole, there = (denoisers.trained(slug, tmp_path / device, 3, device=device) for device in ("cpu", "cuda"))
    for name, x in weights(whole.model.module).items():
        torch.testing.assert_close(weights(there.model.module)[name], x, **NEAR)


def test_less_memory_with_gradient_checkpointing():
    held = []
    for again in (False, True):
        policy = load_policy("transformer:layers=8,width=256,heads=4,context=512", device=GPU)
        policy.recompute, batch = again, copy.copy(batch_of(sampled(small("llama"), 32)))
        torch.cuda.reset_peak_memory_stats()
        policy.score(batch, 1.0).logp.sum().backward()
        held.append(torch.cuda.max_memory_allocated())
    assert held[1] < held[0]


def test_a_gpu_that_is_full_is_one_error():
    with pytest.raises(InputError, match="micro_tokens"), memory_errors({"micro_tokens"}):
        torch.empty(2**50, device=GPU, dtype=torch.uint8)
