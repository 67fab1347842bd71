"""Denoising: its schedule, the order in which masks are filled in, what it samples from, what it records."""

import numpy as np
import pytest
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory, from_json, to_json
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.denoising import DenoisingEngine, schedule
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.masked_diffusion import small_denoiser

MASK, EOS = 10, 9


def small(seed=0, context=24):
    policy = small_denoiser(
        vocabulary=11, layers=1, width=16, heads=2, context_length=context, seed=seed, eos_id=EOS, mask_id=MASK
    )
    policy.module.double()
    return policy


def request(ids, n=1, **more):
    return Request(np.array(ids, np.int64), n, **more)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Fixed:
    """Logits that are given for each place of the response, whatever stands elsewhere."""

    def __init__(self, logits, prompt=2):
        self.z, self.prompt, self.seen = torch.tensor(logits, dtype=torch.float64), prompt, []
        self.mask_id, self.stop_ids, self.context_length = self.z.shape[1] - 1, (0,), 50
        self.z[:, self.mask_id] = -1e4

    def predict(self, tokens, valid, where):
        self.seen.append((tokens.clone(), where.clone()))
        place = where.nonzero()[:, 1] - self.prompt
        return self.z[place]

    def score_masked(self, batch, masked, temperature, context_masked=None):
        raise AssertionError

    def score(self, batch, temperature, *, entropy=False, hidden=False, logits=False):
        return Scores(torch.zeros(batch.response.shape), torch.ones(batch.response.shape) if entropy else None)


@pytest.mark.parametrize(
    ("tokens", "block", "steps", "want"),
    [
        (8, 4, 0, [[1] * 4, [1] * 4]), (8, 4, 4, [[2, 2], [2, 2]]), (8, 4, 5, [[2, 2], [2, 1, 1]]),
        (10, 4, 0, [[1] * 4, [1] * 4, [1, 1]]), (10, 4, 3, [[4], [4], [2]]), (5, 32, 2, [[3, 2]]),
        (4, 2, 99, [[1, 1], [1, 1]]), (512, 32, 256, [[2] * 16] * 16),
    ],
)  # fmt: skip
def test_schedule(tokens, block, steps, want):
    assert schedule(tokens, block, steps) == want
    assert sum(map(sum, want)) == tokens


def test_every_block_gets_a_pass_and_every_pass_a_token():
    for tokens in range(1, 30):
        for block in range(1, 12):
            blocks = -(-tokens // block)
            for steps in range(blocks, tokens + 3):
                plan = schedule(tokens, block, steps)
                assert [sum(p) for p in plan] == [min(block, tokens - b) for b in range(0, tokens, block)]
                assert min(min(p) for p in plan) >= 1 and sum(map(len, plan)) == min(steps, tokens)


def test_a_block_needs_a_pass():
    with pytest.raises(InputError, match="at least 3"):
        schedule(10, 4, 2)


def test_blocks_from_left_to_right_and_the_surest_tokens_first():
    sure = [1.0, 3.0, 2.0, 4.0, 0.5, 9.0, 7.0, 8.0]  # of token 1 at each place; blocks of four
    policy = Fixed([[0.0, s, 0.0, 0.0] for s in sure])
    [[(segment, stop)]] = DenoisingEngine(policy).generate([request([2, 2])], Sampling(8, 0.0, block=4), rng())
    assert segment.response.tolist() == [1] * 8 and stop == "length" and segment.end is None
    order = [sorted((where[0].nonzero().flatten() - 2).tolist()) for _, where in policy.seen]
    assert order == [[0, 1, 2, 3], [0, 1, 2], [0, 2], [0], [4, 5, 6, 7], [4, 6, 7], [4, 6], [4]]
    assert policy.seen[2][0][0].tolist() == [2, 2, 3, 1, 3, 1, 3, 3, 3, 3]  # the prompt, two tokens, masks


def test_several_tokens_a_pass():
    policy = Fixed([[0.0, s, 0.0, 0.0] for s in (1.0, 3.0, 2.0, 4.0)])
    DenoisingEngine(policy).generate([request([2, 2])], Sampling(4, 0.0, block=4, steps=2), rng())
    assert [sorted((w[0].nonzero().flatten() - 2).tolist()) for _, w in policy.seen] == [[0, 1, 2, 3], [0, 2]]


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_tokens_have_the_probabilities_of_the_tempered_logits(temperature):
    logits = [0.3, 1.2, -0.4, 0.0]
    policy = Fixed([logits])
    answers = DenoisingEngine(policy).generate([request([2, 2], 4000)], Sampling(1, temperature), rng())[0]
    got = np.bincount([s.response[0] for s, _ in answers], minlength=4) / 4000
    want = torch.softmax(torch.tensor(logits[:3]) / temperature, 0).numpy()
    assert got[3] == 0
    assert np.abs(got[:3] - want).max() < 0.03


def written_out(policy, context, length, block):
    """Greedy denoising of one response, token by token, from the paper's words."""
    x = [*context, *[MASK] * length]
    for b in range(0, length, block):
        places = list(range(len(context) + b, len(context) + min(b + block, length)))
        while places:
            z = policy.module(input_ids=torch.tensor([x])).logits[0]
            z[:, MASK] = -torch.inf
            p = z.softmax(-1)
            best = max(places, key=lambda i: float(p[i].max().detach()))
            x[best] = int(p[best].argmax())
            places.remove(best)
    return x[len(context) :]


def test_it_is_the_written_out_algorithm_and_rows_do_not_mix():
    policy = small()
    contexts = [[1, 2, 3], [4, 5, 6, 7, 8], [3]]
    requests = [request(c) for c in contexts]
    answers = DenoisingEngine(policy).generate(requests, Sampling(6, 0.0, block=4), rng())
    for c, [(segment, _)] in zip(contexts, answers, strict=True):
        assert segment.response.tolist() == written_out(policy, c, 6, 4)


def test_what_a_segment_records():
    policy = small()
    answers = DenoisingEngine(policy).generate(
        [request([1, 2], 6), request([3], 2)], Sampling(7, entropy=True), rng(), 5
    )
    assert [len(a) for a in answers] == [6, 2]
    segments = [s for a in answers for s, _ in a]
    batch = from_groups([Group("", Prompt(""), [Trajectory("", [s], 0.0)]) for s in segments], torch.float64)
    scores = policy.score(batch, 1.0, entropy=True)
    for i, s in enumerate(segments):
        assert len(s.response) == 7 and MASK not in s.response and (s.version == 5).all() and s.mask.all()
        np.testing.assert_allclose(s.logp, scores.logp[i].detach(), atol=1e-6)
        np.testing.assert_allclose(s.entropy, scores.entropy[i].detach(), atol=1e-6)
        ends = np.flatnonzero(s.response == EOS)
        assert s.end == (ends[0] + 1 if len(ends) else None)
        assert s.answer.tolist() == s.response[: s.end].tolist()


def test_the_answer_ends_at_the_first_stop_token_and_the_rest_stays_for_the_update():
    policy = Fixed([[0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 5, 0], [5, 0, 0, 0]])
    [[(segment, stop)]] = DenoisingEngine(policy).generate([request([2, 2])], Sampling(4, 0.0), rng())
    assert segment.response.tolist() == [1, 0, 2, 0] and stop == "eos"
    trajectory = Trajectory("a", [segment], 1.0)
    assert trajectory.response.tolist() == [1, 0] and trajectory.length == 4
    group = Group("g", Prompt("p"), [trajectory])
    again = from_json(to_json(group), Prompt("p"))
    assert again.trajectories[0].response.tolist() == [1, 0]
    assert from_groups([group]).valid.sum() == 4


def test_prefix_and_limit_of_a_request():
    policy = small()
    requests = [request([1, 2], prefix=(4, 5)), request([1, 2], max_tokens=3), request([1], prefix=(6,), prefix_logp=(-0.5,)),
                request([1], max_tokens=1, prefix=(7,))]  # fmt: skip
    [[(a, _)], [(b, _)], [(c, _)], [(d, _)]] = DenoisingEngine(policy).generate(requests, Sampling(6), rng(), 3)
    assert a.response[:2].tolist() == [4, 5] and len(a.response) == 6
    assert a.mask.tolist() == [False] * 2 + [True] * 4 and a.version.tolist() == [-1] * 2 + [3] * 4
    assert len(b.response) == 3
    assert c.mask.all() and c.logp[0] == -0.5 and c.version[0] == -1
    assert d.response.tolist() == [7]


def test_same_seed_same_bits_other_seed_other_bits():
    policy = small()
    runs = [DenoisingEngine(policy).generate([request([1, 2], 8)], Sampling(6), rng(s)) for s in (1, 1, 2)]
    ids = [np.stack([s.response for s, _ in r[0]]) for r in runs]
    assert (ids[0] == ids[1]).all() and (ids[0] != ids[2]).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="holds 24 tokens"):
        DenoisingEngine(small()).generate([request([1] * 20)], Sampling(6), rng())
    with pytest.raises(InputError, match="fit into max_tokens"):
        DenoisingEngine(small()).generate([request([1], prefix=(1, 2, 3))], Sampling(2), rng())
