"""Gradient checkpointing gives the same gradients from fewer kept numbers, on every pass that a policy may take."""

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.recompute import recompute
from anypolicy.policies.language.reward_model import RewardModel
from tests.helpers import batch_of
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
