"""Images from the prompt to the batch, through engine, loop, evaluation and checkpoint; token weights and kinds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.media import content
from anypolicy.data.records import Group, Prompt, Trajectory, from_json, to_json
from anypolicy.engines.base import Request, Sampling, ask
from anypolicy.engines.denoising import DenoisingEngine
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.evaluation.language import evaluate
from anypolicy.evaluation.reference import sequence_kl
from anypolicy.loops.group import GroupLoop
from anypolicy.policies.language.base import Sees
from anypolicy.policies.language.masked_diffusion import small_denoiser
from anypolicy.policies.language.table import TablePolicy
from anypolicy.stages.common import DropSolved
from anypolicy.stages.recipe import World
from anypolicy.stages.recorded import recorded_group
from anypolicy.stages.reference import row_names
from anypolicy.stages.targets import reference_target
from anypolicy.tasks.language.base import Score
from tests.helpers import segment


def picture(n):
    return np.full((2, 2, 3), n, np.uint8)


class SeeingTable(TablePolicy):
    """A table whose row is the number in the image: every prompt has the same ids."""

    def media(self, prompt):
        images = prompt.media.get("images", ())
        return {"pixel_values": torch.stack([torch.tensor(x).float() for x in images])} if images else {}

    def rows(self, media):
        return torch.tensor([[int(m["pixel_values"].flatten()[0])] for m in media])

    def score(self, batch, temperature, **wanted):
        return super().score(replace(batch, context=self.rows(batch.media)), temperature, **wanted)

    def prefill(self, contexts, media=None):
        return super().prefill([row.numpy() for row in self.rows(media)])


class Shown:
    """The right answer is the number in the image, in the first of two tokens."""

    name, max_tokens = "shown", 2

    def __init__(self, n=4):
        self.train = [
            Prompt(f"p{i}", tokens=(0,), media={"images": (picture(i),)}, answer=i, reference=(i, 0)) for i in range(n)
        ]
        self.heldout = self.train[:2]

    def score(self, prompt, response, text):
        right = int(response[0]) == prompt.answer
        return Score(float(right), right)


def table(seed=0, n=4):
    return SeeingTable(torch.randn(n, 2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def world(policy=None):
    policy = policy or table()
    return World(policy, NativeEngine(policy), Shown(), Sampling(2), 0)


def seen(n, response, ids=(0,)):
    return replace(segment(response, list(ids)), media={"pixel_values": torch.full((1, 2), float(n))})


def groups(*segments):
    return [Group(str(i), Prompt(str(i)), [Trajectory(str(i), [s], reward=1.0)]) for i, s in enumerate(segments)]


def test_contexts_are_told_apart_by_what_they_show():
    batch = from_groups(groups(seen(1, [1]), seen(2, [1, 2]), seen(1, [3]), segment([1], [0])))
    assert batch.context_index.tolist() == [0, 1, 0, 2]
    assert [float(m["pixel_values"][0, 0]) if m else None for m in batch.media] == [1, 2, None]
    assert batch.select(torch.tensor([1])).media[0]["pixel_values"][0, 0] == 2
    drawn = batch.draw(torch.tensor([3, 1, 1]))
    kept = [drawn.media[i] for i in drawn.context_index.tolist()]
    assert [float(m["pixel_values"][0, 0]) if m else None for m in kept] == [None, 2, 2]
    parts = [batch.select(rows) for rows in batch.chunks(3)]
    assert sorted(len(p.context) for p in parts) == [len(p.media) for p in sorted(parts, key=lambda p: len(p.context))]
    assert sum(p.rows for p in parts) == 4


def test_names_dtypes_and_shapes_count_as_content():
    x = torch.arange(4.0)
    different = [{}, {"a": x}, {"b": x}, {"a": x.view(2, 2)}, {"a": x.double()}, {"a": x + 1}, {"a": x, "b": x},
                 {"a": x.to(torch.bfloat16)}, {"a": torch.tensor(1)}]  # fmt: skip
    assert len({content(m) for m in different}) == len(different)
    assert content({"a": x, "b": x + 1}) == content({"b": x + 1, "a": x.clone()})
    assert content({}) == b""


def test_fields_that_nothing_has_are_off():
    batch = from_groups(groups(segment([1, 2])))
    assert batch.media is None
    assert batch.token_weight is None
    assert batch.kind is None


def test_weights_and_kinds_follow_rows_and_trajectories():
    heavy = replace(segment([1, 2]), token_weight=np.array([2.5, 1.5], np.float32))
    made = groups(segment([1, 2, 3]), heavy)
    made[1].trajectories[0].info["kind"] = 2
    batch = from_groups(made, torch.float64)
    assert batch.token_weight.dtype == torch.float64
    assert batch.token_weight.tolist() == [[1, 1, 1], [2.5, 1.5, 1]]
    assert batch.kind.tolist() == [-1, 2]
    part = batch.draw(torch.tensor([1, 1]))
    assert part.token_weight.tolist() == [[2.5, 1.5]] * 2
    assert part.kind.tolist() == [2, 2]


def test_groups_are_written_without_their_images():
    group = groups(replace(seen(1, [1, 2]), token_weight=np.array([2.5, 0.1], np.float32)))[0]
    group.trajectories[0].info["kind"] = 1
    media = {"pixel_values": torch.full((1, 2), 1.0)}
    written = json.loads(json.dumps(to_json(group, media)))
    assert written["trajectories"][0]["segments"][0]["media"] is True
    back = from_json(written, group.prompt, media).trajectories[0]
    assert content(back.segments[0].media) == content(media)
    assert back.segments[0].token_weight.tolist() == group.trajectories[0].segments[0].token_weight.tolist()
    assert back.segments[0].token_weight.dtype == np.float32
    assert back.info == {"kind": 1}
    with pytest.raises(InputError, match="other images"):
        to_json(group, {"pixel_values": torch.zeros(1, 2)})
    with pytest.raises(InputError, match="other images"):
        to_json(group)


def test_the_engine_reads_equal_ids_with_different_images_apart():
    policy = table()
    policy.module.logits.data.copy_(40 * torch.eye(4).double()[:, None].expand(4, 2, 4))
    requests = [ask(policy, p, 3) for p in Shown().train]
    answers = NativeEngine(policy).generate(requests, Sampling(2), rng())
    assert [{int(s.response[0]) for s, _ in row} for row in answers] == [{0}, {1}, {2}, {3}]
    assert all(s.media is r.media for r, row in zip(requests, answers) for s, _ in row)


def test_a_policy_of_text_refuses_images_and_names_the_prompt():
    plain = TablePolicy(torch.zeros(4, 2, 4))
    assert isinstance(table(), Sees)
    assert not isinstance(plain, Sees)
    recipe = compose("grpo").recipe
    with pytest.raises(InputError, match=r"prompt 'p0' has images"):
        GroupLoop(recipe, world(plain), prompts=2, micro_tokens=99, reference=None)
    shown = Request(np.zeros(1, np.int64), media={"pixel_values": torch.zeros(1)})
    with pytest.raises(InputError, match="text alone"):
        NativeEngine(plain).generate([shown], Sampling(2), rng())
    denoiser = small_denoiser(
        vocabulary=11, layers=1, width=16, heads=2, context_length=24, seed=0, eos_id=9, mask_id=10
    )
    with pytest.raises(InputError, match="text alone"):
        DenoisingEngine(denoiser).generate([shown], Sampling(2), rng())


def test_evaluation_targets_and_recorded_responses_show_the_images():
    policy = table()
    log, _ = evaluate(world(policy), Shown().train)
    want = policy.module.logits.log_softmax(-1)
    each = [want[i, 0, i] + want[i, 1, 0] for i in range(4)]
    assert log["eval/logp"] == pytest.approx(float(torch.stack(each).mean() / 2), abs=1e-12)
    assert log["eval/accuracy"] == float((want[:, 0].argmax(-1) == torch.arange(4)).double().mean())
    two = Shown().train[2]
    assert content(reference_target(policy, two).segments[0].media) == content(policy.media(two))
    prompt = replace(Shown().train[3], info={"responses": [[1, 2]], "scores": [0.5]})
    assert recorded_group(policy, prompt).trajectories[0].segments[0].media["pixel_values"].flatten()[0] == 3
    other = table(1)
    exact = (want.exp() * (want - other.module.logits.log_softmax(-1))).sum((1, 2)).mean()
    assert sequence_kl(world(policy), other, Shown().train)[0] == pytest.approx(float(exact), abs=1e-9)


def test_a_reference_knows_responses_by_their_images():
    batch = from_groups(groups(seen(1, [1]), seen(2, [1]), seen(1, [1]), segment([1], [0])))
    a, b, c, d = row_names(batch)
    assert a == c
    assert len({a, b, d}) == 3


def test_carried_groups_survive_a_checkpoint_bit_for_bit():
    recipe = replace(compose("grpo").recipe, selection=DropSolved(carry=True, max_rounds=3))
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=0.05))

    def loop():
        return GroupLoop(recipe, world(table()), prompts=3, micro_tokens=99, reference=table())

    whole, again = loop(), loop()
    while not whole.carried:
        whole.step()
    again.world.policy.module.load_state_dict(whole.world.policy.module.state_dict())
    again.restore(json.loads(json.dumps(whole.state())), {k: v.clone() for k, v in whole.tensors().items()})
    assert content(again.carried[0].trajectories[0].segments[0].media)
    for _ in range(3):
        assert again.step() == whole.step()
    assert torch.equal(again.world.policy.module.logits, whole.world.policy.module.logits)
