"""The reader of small pictures: what it scores is what it samples from, and what it needs to see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Prompt
from anypolicy.engines.base import Sampling, ask
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.picture_reader import PictureReader, Sizes
from anypolicy.runs.seeds import generator
from anypolicy.stages.common import group_of

SIZES = Sizes(rows=3, numbers=4, vocabulary=6, length=4, layers=2, width=16, heads=2)


def prompt(n, shape=(3, 4)):
    picture = np.random.default_rng(n).standard_normal(shape).astype(np.float32)
    return Prompt(str(n), tokens=(5,), media={"images": [picture]}, reference=(0, 1, 2, 3))


def sampled(policy, n=5):
    prompts = [prompt(i) for i in range(n)]
    answers = NativeEngine(policy).generate([ask(policy, p, 3) for p in prompts], Sampling(4), generator(0, "x"))
    return from_groups([group_of(p, a) for p, a in zip(prompts, answers, strict=True)])


def test_it_scores_what_it_samples_from():
    policy = PictureReader(SIZES, 0)
    batch = sampled(policy)
    assert batch.response.shape == (15, 4)
    assert len(batch.media) == 5
    scores = policy.score(replace(batch, target=batch.valid), 1.0, entropy=True, hidden=True, logits=True)
    torch.testing.assert_close(scores.logp, batch.logp_old, atol=1e-5, rtol=1e-5)
    whole = scores.logits.head(scores.logits.states).log_softmax(-1)
    torch.testing.assert_close(whole.gather(1, batch.response[batch.valid][:, None]).view(15, 4), scores.logp)
    torch.testing.assert_close(-(whole.exp() * whole).sum(-1).view(15, 4), scores.entropy)
    hotter = policy.score(batch, 2.0).logp
    assert not torch.allclose(hotter, scores.logp)


def test_it_sees_its_picture_and_no_later_token():
    policy = PictureReader(SIZES, 0)
    batch = sampled(policy)
    before = policy.score(batch, 1.0).logp
    other = tuple({"pixels": m["pixels"] + 1} for m in batch.media)
    assert ((policy.score(replace(batch, media=other), 1.0).logp - before).abs() > 1e-6).all(1).all()
    later = batch.response.clone()
    later[:, 2] = (later[:, 2] + 1) % 6
    after = policy.score(replace(batch, response=later), 1.0).logp
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 3], before[:, 3])


def test_a_saved_policy_is_the_same(tmp_path):
    policy = PictureReader(SIZES, 3)
    policy.save(tmp_path)
    again = load_policy(str(tmp_path))
    assert again.sizes == SIZES
    batch = sampled(policy)
    assert torch.equal(policy.score(batch, 1.0).logp, again.score(batch, 1.0).logp)
    assert not torch.equal(policy.score(batch, 1.0).logp, PictureReader(SIZES, 4).score(batch, 1.0).logp)


@pytest.mark.parametrize(
    "given", [prompt(0, (4, 4)), replace(prompt(0), media={}), replace(prompt(0), media={"images": []})]
)
def test_without_its_picture(given):
    policy = PictureReader(SIZES, 0)
    with pytest.raises(InputError, match=r"'0'.*one picture of 3 rows of 4 numbers"):
        ask(policy, given)
    bare = sampled(policy)
    with pytest.raises(InputError, match="the batch has none"):
        policy.score(replace(bare, media=None), 1.0)


@pytest.mark.parametrize("reference", [(0, 1, 2), (0, 1, 2, 9), "0 1 2 3", None])
def test_references_have_the_right_length(reference):
    policy = PictureReader(SIZES, 0)
    with pytest.raises(InputError, match="give 4 token ids from 0 to 5"):
        policy.encode_reference(replace(prompt(0), reference=reference))
    assert policy.encode_reference(prompt(0)).tolist() == [0, 1, 2, 3]
    assert policy.decode(np.array([1, 2])) == "1 2"
