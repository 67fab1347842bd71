"""Gradient checkpointing gives the same gradients from fewer kept numbers, on every pass that a policy may take; what a run
takes is estimated, and running out is one error."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import anypolicy as ap
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.errors import InputError
from anypolicy.loops.group import GroupLoop
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.memory import Load, Sizes, estimate, sizes_of, told
from anypolicy.policies.language.recompute import recompute
from anypolicy.policies.language.reward_model import RewardModel
from tests.helpers import batch_of, segment
from tests.policies.test_causal_lm import CONFIGS
from tests.policies.test_causal_lm import policy as small

KINDS = {"masked-diffusion": "masked-diffusion", "reward": "transformer"}
SIZES = "layers=3,width=32,heads=2,context=64"


def packed(_):
    """A policy whose packed pass is known to be exact."""


def plain(policy):
    policy.packs = False


def gradients(policy, again):
    """Of the sum of all log-probabilities and entropies; and how many numbers were kept for them."""
    kept, held = dict[int, int](), []

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        held.append(x)
        return x

    policy.recompute, batch = again, batch_of([[1.0, 0.0], [0.5, 0.2]], [[5, 3], [4, 6]])
    own = {p.untyped_storage().data_ptr() for p in policy.module.parameters()}
    policy.module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        if isinstance(policy, RewardModel):
            total = policy.score([[5, 6, 7], [8, 9, 10, 11]]).sum()
        else:
            scores = policy.score(batch, 1.0, entropy=True)
            total = scores.logp.sum() + scores.entropy.sum()
    total.backward()
    return [p.grad.clone() for p in policy.module.parameters()], sum(n for at, n in kept.items() if at not in own)


@pytest.mark.parametrize("kind", [*CONFIGS, "masked-diffusion", "reward"])
@pytest.mark.parametrize("path", [packed, plain])
def test_same_gradients_from_fewer_numbers(kind, path):
    if kind not in CONFIGS and path is plain:
        return
    policy = small(kind) if kind in CONFIGS else load_policy(f"{KINDS[kind]}:{SIZES}")
    policy = RewardModel.from_policy(policy, 0) if kind == "reward" else policy
    path(policy)
    (want, many), (got, few) = (gradients(policy, again) for again in (False, True))
    assert all(map(torch.equal, got, want))
    assert few < 0.6 * many


def test_what_has_no_blocks_is_refused(tmp_path):
    for spec, why in (("vlm:layers=1,width=16,heads=2,image=16,patch=8", "cache"),):
        with pytest.raises(InputError, match=why):
            recompute(load_policy(spec))
    policy = load_policy(f"transformer:{SIZES}")
    recompute(policy)
    assert policy.recompute


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_estimated_memory_of_a_pass_is_about_what_it_keeps(kind):
    """Of the states of six responses: within a factor of two of the bytes that autograd holds."""
    policy, rng, kept, held = small(kind), np.random.default_rng(0), dict[int, int](), []
    own = {p.untyped_storage().data_ptr() for p in policy.module.parameters()}

    def keep(x):
        held.append(x)
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    rows = [segment(list(rng.integers(0, 50, 60)), list(rng.integers(0, 50, 100))) for _ in range(6)]
    batch = from_groups([Group(str(i), Prompt(str(i)), [Trajectory(str(i), [s])]) for i, s in enumerate(rows)])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        states = policy.hidden_packed(batch)
    assert states.requires_grad
    measured = sum(n for at, n in kept.items() if at not in own)
    assert 0.5 < 4 * Sizes.of(policy.config, 0).kept(6 * 160, 160, recompute=False) / measured < 2


def test_parts_of_the_memory_of_a_run():
    """135 million weights in bfloat16, by hand."""
    sizes = sizes_of("smollm2-135m")
    load = Load(1000, 16, 100, narrow=True, adapters=False, reference=True, recompute=True, gpu=True)
    parts = estimate(sizes, load)
    assert parts["weights"] == parts["reference"] == 2 * 134_515_008
    assert (parts["optimiser"], parts["gradients"]) == (12 * 134_515_008, 4 * 134_515_008)
    assert parts["cache"] == 2 * 16 * 100 * 30 * 2 * 192 + 8 * 16 * 49_152
    block = 6 * 576 + 9 * 100 + 4 * 192 + 4 * 1536
    assert parts["activations"] == 3 * 2**24 + 2 * 1000 * (30 * 576 + block)
    assert parts["peak"] == 16 * 134_515_008 + max(parts["gradients"] + parts["activations"], parts["cache"])
    everything = estimate(sizes, replace(load, recompute=False, gpu=False))
    assert everything["peak"] - 16 * 134_515_008 == max(
        everything["checkpoint"], everything["gradients"] + everything["activations"]
    )
    assert estimate(sizes, replace(load, adapters=True))["optimiser"] == pytest.approx(0.02 * parts["optimiser"])
    assert sizes_of("transformer:layers=3,width=32").parameters == pytest.approx(
        sum(p.numel() for p in load_policy("transformer:layers=3,width=32,heads=2,context=64").module.parameters()),
        rel=0.1,
    )
    assert sizes_of("OWNER/NAME") is None
    assert told(parts).startswith("about 2.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_memory_that_does_not_suffice_is_one_error(error, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(GroupLoop, "step", fails)
    with pytest.raises(InputError, match=r"memory.*micro_tokens.*recompute.*lora_rank"):
        ap.train("grpo", task="tabular-lock", steps=1, quiet=True, trackers=(), out=tmp_path / "a")
    monkeypatch.setattr(GroupLoop, "step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        ap.train("grpo", task="tabular-lock", steps=1, quiet=True, trackers=(), out=tmp_path / "b")
