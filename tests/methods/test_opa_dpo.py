"""OPA-DPO: worked numbers, identities, masked pictures, what an item is made of, and runs that follow each other."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.engines.base import Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.loops.group import GroupLoop
from anypolicy.methods.preference.dpo import Sigmoid, dpo
from anypolicy.methods.preference.opa_dpo import IMAGE, LANGUAGE, TERMS, RevisionLoss, losses, opa_dpo, preferred
from anypolicy.parts.preference import sigmoid
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.load import load_policy
from anypolicy.runs.seeds import generator
from anypolicy.stages.recipe import World
from anypolicy.stages.revised import (
    Kind,
    generated_items,
    image_weight,
    joined,
    language_weight,
    masked,
    revised_item,
)
from anypolicy.tasks.language.base import Revision
from anypolicy.tasks.language.recorded import RecordedTask
from anypolicy.tasks.language.revisions import revised, with_report
from anypolicy.tasks.language.slots import Slots
from tests.helpers import lock_loop, segment

LOG2 = math.log(2)


# --- numbers ---------------------------------------------------------------------------------------------------------
def padded(*rows, fill=0.0):
    return torch.tensor([[[*row, *[fill] * (5 - len(row))]] for row in rows], dtype=torch.float64)


A = padded((0.4, 0.2, -0.1), (-0.3, -0.5, 0.1, -0.2), (0.3, 0.1, 0.2, 0.0), (0.1, 0.1, -0.1), (0.1, -0.2, 0.1, 0.0))
W = padded((1, 1, 1), (1, 2.5, 2.5, 1), (1, 2.5, 2.5, 1), (1, 1, 1), (1, 3, 3, 1), fill=1.0)


def worked(a=A, w=W, **more):
    """L1 to L4, the anchor, and their sum with the paper's coefficients."""
    each = {name: float(x) for name, x in losses(a, w, **more).items()}
    terms = [each[k] for k in ("reference", "revision", "reference_image", "revision_image")]
    anchor = each["reference_anchor"] + each["revision_anchor"]
    return terms, anchor, terms[0] + terms[1] + 0.2 * (terms[2] + terms[3]) + anchor


def test_the_worked_item():
    gt, gen, rev, gt_masked, rev_masked = A[:, 0]
    s, i = W[Kind.REVISED, 0], W[Kind.MASKED_REVISED, 0]
    margins = [gt.sum() - gen.sum(), (s * rev).sum() - (s * gen).sum(), gt.sum() - gt_masked.sum(),
               (i * rev).sum() - (i * rev_masked).sum()]  # fmt: skip
    assert [float(x) for x in margins] == pytest.approx([1.4, 2.55, 0.4, 1.4])
    terms, anchor, total = worked()
    assert terms == pytest.approx([0.625595, 0.573753, 0.673347, 0.625595], abs=5e-7)
    assert anchor == pytest.approx(1.332057, abs=5e-7)
    assert total == pytest.approx(2.791194, abs=5e-7)


def test_position_by_position_as_the_code():
    terms, _, _ = worked(padded=5)
    assert terms[:2] == pytest.approx([0.679412, 0.668325], abs=5e-7)
    assert worked(padded=5, code_sign=True)[1] == pytest.approx(2.774764, abs=5e-7)
    assert worked(code_sign=True)[1] == pytest.approx(2.784114, abs=5e-7)
    assert worked(A[..., :4], W[..., :4], padded=5)[0] == pytest.approx(terms, abs=1e-12)
    for delta in (0.0, 0.3, -1.0):
        more = {"padded": 5, "delta": delta}
        assert worked(A[..., :4], W[..., :4], **more)[2] == pytest.approx(worked(**more)[2], abs=1e-12)
        direct = -torch.nn.functional.logsigmoid(0.1 * A[Kind.REVISED] - delta).mean()
        assert float(losses(A, W, **more)["revision_anchor"]) == pytest.approx(float(direct), abs=1e-12)


def test_at_the_reference():
    terms, anchor, total = worked(torch.zeros_like(A))
    assert terms == pytest.approx([LOG2] * 4)
    assert anchor == pytest.approx(2 * LOG2)
    assert total == pytest.approx(4.4 * LOG2) == pytest.approx(3.049848, abs=5e-7)


def test_signs_of_the_gradient():
    a = A.clone().requires_grad_()
    each = losses(a, W)
    gradient = {
        name: torch.autograd.grad(x.sum(), a, retain_graph=True)[0].sum((1, 2)).sign() for name, x in each.items()
    }
    for name, (chosen, other) in TERMS.items():
        want = torch.zeros(5, dtype=torch.float64)
        want[other] = 1
        want[chosen] = -1
        assert gradient[name].tolist() == want.tolist(), name
    flipped = torch.autograd.grad(losses(a, W, code_sign=True)["revision_anchor"].sum(), a)[0]
    assert flipped[Kind.REVISED].sum() > 0


def test_scores_become_weights():
    def revision(score, error="correct", sentence="a"):
        return Revision(sentence, score, error, "b")

    assert [language_weight(revision(s), LANGUAGE) for s in (1, 2, 3, 4)] == [2.5, 2.0, 1.5, 1.0]
    assert [language_weight(revision(s), LANGUAGE) for s in (0, 7)] == [1.0, 1.0]
    assert language_weight(revision(1, sentence=""), LANGUAGE) == 1.0
    kinds = ("image_recognition_error", "language_comprehension_error", "correct", "")
    assert [image_weight(revision(1, e), IMAGE) for e in kinds] == [3.0, 1.0, 1.0, 1.0]


def test_plain_weights_are_plain_dpo():
    for seed in range(200):
        a = torch.randn(5, 3, 6, generator=generator(seed, "opa"), dtype=torch.float64)
        each = losses(a, torch.ones_like(a), beta=0.3)
        for name, (chosen, other) in TERMS.items():
            if chosen != other:
                want = sigmoid(a[chosen].sum(1) - a[other].sum(1), 0.3)
                torch.testing.assert_close(each[name], want, atol=1e-12, rtol=0)


def test_unequal_weights_give_a_common_shift_a_margin():
    shift = torch.full_like(A[:, :, :4], 0.2)
    w = torch.ones_like(shift)
    w[Kind.REVISED, 0, 1] = 2.5
    assert (
        float(losses(shift, w)["revision"])
        < LOG2
        == pytest.approx(float(losses(shift, torch.ones_like(w))["revision"]))
    )


def test_a_reference_that_never_says_it_keeps_dpo_from_teaching_it():
    """Three answers, the last one preferred to the first; the reference gives it 1e-4 or 0.1."""

    def after(reference):
        ref = torch.tensor(reference, dtype=torch.float64).log()
        z = ref.clone().requires_grad_()
        for _ in range(200):
            a = z.log_softmax(0) - ref
            loss = preferred(a[2].view(1, 1), a[0].view(1, 1), 0.1).sum()
            [g] = torch.autograd.grad(loss, z)
            z = (z - g).detach().requires_grad_()
        a = (z.log_softmax(0) - ref).detach()
        return z.detach().softmax(0), float(a[2] - a[0])

    rare, h_rare = after((0.7, 0.2999, 0.0001))
    usual, h_usual = after((0.7, 0.2, 0.1))
    assert h_rare == pytest.approx(h_usual, abs=1e-9)
    assert h_rare == pytest.approx(13.083798, abs=5e-7)
    assert rare.tolist() == pytest.approx([0.0027, 0.8100, 0.1873], abs=5e-5)
    assert usual.tolist() == pytest.approx([0.0000, 0.0029, 0.9971], abs=5e-5)


# --- masked pictures -------------------------------------------------------------------------------------------------
def test_masking():
    x = torch.arange(8, dtype=torch.float64).view(2, 4)
    for seed in range(50):
        y = masked(x, 0.3, generator(seed, "mask"))
        changed = (y != x).nonzero()
        assert len(changed) == 2
        assert (y[tuple(changed.T)] == 3.5).all()
    assert torch.equal(masked(x, 0.0, generator(0, "mask")), x)
    assert (masked(x, 1.0, generator(0, "mask")) == 3.5).all()


def test_masking_takes_the_same_pixels_in_all_channels_and_others_in_every_image():
    x = torch.randn(4, 3, 5, 7, generator=generator(0, "picture"), dtype=torch.float64)
    y = masked(x, 0.3, generator(1, "mask"))
    changed = y != x
    assert changed.sum((2, 3)).tolist() == [[10] * 3] * 4
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert not torch.equal(changed[0], changed[1])
    for one, new, where in zip(x, y, changed, strict=True):
        torch.testing.assert_close(new[where], one.mean().expand(30))
    vector = torch.randn(48, generator=generator(0, "v"), dtype=torch.float64)
    assert int((masked(vector, 0.3, generator(1, "mask")) != vector).sum()) == 14
    counts = sum((masked(torch.arange(8.0), 0.25, generator(s, "m")) != torch.arange(8.0)).float() for s in range(2000))
    assert counts.min() > 400
    assert counts.max() < 600


# --- the loss on batches ---------------------------------------------------------------------------------------------
def batch_of(items, media=True):
    """Items are five (or three) rows of ids; in float64, with the weights of `W` where they fit."""
    groups = []
    for g, rows in enumerate(items):
        own = []
        for kind, ids in enumerate(rows):
            s = segment(list(ids), [g])
            s.token_weight = W[kind, 0, : len(ids)].numpy().astype(np.float32)
            s.media = {"pixels": torch.full((2,), float(g + (kind > 2)))} if media else {}
            reward = math.nan if kind > 2 else float(kind != Kind.GENERATED)
            own.append(Trajectory(f"{g}/{kind}", [s], reward=reward, info={"kind": kind}))
        groups.append(Group(str(g), Prompt(str(g), tokens=(g,)), own))
    batch = from_groups(groups, torch.float64, max_tokens=5)
    return replace(batch, logp_ref=torch.full_like(batch.logp_old, -1.5))


ITEM = [(1, 2, 3), (4, 5, 6, 7), (4, 8, 9, 7), (1, 2, 3), (4, 8, 9, 7)]


def loss_of(loss, batch, logp):
    batch = replace(batch, totals=batch.counted())
    batch = replace(batch, baseline=loss.baseline(batch, None, None))
    return loss(Scores(logp), batch)


def test_the_loss_of_a_batch_is_the_worked_one():
    batch = batch_of([ITEM])
    logp = batch.logp_ref + A[:, 0, : batch.response.shape[1]]
    terms, log = loss_of(RevisionLoss(), batch, logp)
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(
        {"reference": 0.625595, "revision": 0.573753, "reference_image": 0.2 * 0.673347, "revision_image": 0.2 * 0.625595,
         "reference_anchor": float(losses(A, W)["reference_anchor"]), "revision_anchor": float(losses(A, W)["revision_anchor"])},
        abs=5e-7,
    )  # fmt: skip
    assert float(sum(terms.values())) == pytest.approx(2.791194, abs=5e-7)
    assert {k: round(float(v), 6) for k, v in log.items()} == {
        "pairs/chosen": 0.5, "pairs/rejected": -0.9, "pairs/margin": 1.4, "pairs/accuracy": 1.0, "opa/revised": 0.6,
        "opa/masked_reference": 0.1, "opa/masked_revised": 0.0, "opa/corrected_logp_ref": -1.5,
        "opa/weighted": round(4 / 11, 6),
    }  # fmt: skip
    terms, _ = loss_of(RevisionLoss(aggregate="token_position", anchor_code_sign=True), batch, logp)
    assert float(terms["reference"]) == pytest.approx(0.679412, abs=5e-7)
    assert float(terms["reference_anchor"] + terms["revision_anchor"]) == pytest.approx(2.774764, abs=5e-7)


@pytest.mark.parametrize("loss", [RevisionLoss(), RevisionLoss(aggregate="token_position", delta=0.2)])
def test_row_order_padding_and_parts_change_nothing(loss):
    other = [(3,), (5, 5), (5, 6, 1), (3,), (5, 6, 1)]
    batch = batch_of([ITEM, other, ITEM[::-1]])
    rng = generator(0, "logp")
    logp = torch.randn(batch.response.shape, generator=rng, dtype=torch.float64)
    want, log = loss_of(loss, batch, logp)
    whole = replace(batch, totals=batch.counted(), baseline=loss.baseline(batch, None, None))
    parts = [torch.tensor([3, 0, 4, 1, 2]), torch.arange(5, 15).flip(0)]
    made = [
        (loss(Scores(logp[rows][:, : part.response.shape[1]]), part)) for rows in parts for part in [whole.select(rows)]
    ]
    for name, value in want.items():
        torch.testing.assert_close(sum(m.terms[name] for m in made), value, atol=1e-12, rtol=0)
    for name, value in log.items():
        torch.testing.assert_close(sum(m.metrics[name] for m in made), value, atol=1e-12, rtol=0)


def test_a_revision_that_is_the_answer_drops_its_pair_without_a_gradient():
    same = [ITEM[0], ITEM[1], ITEM[1], ITEM[0], ITEM[1]]
    batch = batch_of([same, ITEM])
    logp = torch.randn(batch.response.shape, generator=generator(0, "x"), dtype=torch.float64)
    logp[2] = logp[1]
    logp.requires_grad_()
    terms, _ = loss_of(RevisionLoss(reference_coef=0, image_coef=0, anchor_coef=0), batch, logp)
    [g] = torch.autograd.grad(terms["revision"], logp)
    assert (g[:5] == 0).all()
    assert g[5:].abs().sum() > 0
    alone, _ = loss_of(RevisionLoss(reference_coef=0, image_coef=0, anchor_coef=0), batch_of([ITEM]), logp[5:])
    assert float(terms["revision"].detach()) == pytest.approx(float(alone["revision"].detach()) / 2)
    both, _ = loss_of(RevisionLoss(), batch, logp)
    assert float(both["reference"].detach()) > 0


def test_the_reference_pair_alone_is_dpo():
    batch = batch_of([ITEM, ITEM])
    logp = torch.randn(batch.response.shape, generator=generator(0, "x"), dtype=torch.float64).requires_grad_()
    ours, _ = loss_of(RevisionLoss(revision_coef=0, image_coef=0, anchor_coef=0), batch, logp)
    assert list(ours) == ["reference"]
    pairs = replace(batch, pairs=torch.tensor([[0, 1], [5, 6]]))
    theirs = dpo().loss(Scores(logp), pairs).terms["preference"]
    assert dpo().loss.objective == Sigmoid(0.1)
    assert float(ours["reference"].detach()) == pytest.approx(float(theirs.detach()), abs=1e-12)
    gradients = [torch.autograd.grad(x, logp, retain_graph=True)[0] for x in (ours["reference"], theirs)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_without_images_there_are_no_image_terms():
    batch = batch_of([ITEM[:3]], media=False)
    terms, log = loss_of(RevisionLoss(), batch, batch.logp_ref)
    assert set(terms) == {"reference", "revision", "reference_anchor", "revision_anchor"}
    assert not any("masked" in name for name in log)
    assert float(sum(terms.values())) == pytest.approx(4 * LOG2)


def test_rows_that_are_missing_leave_their_terms_out():
    batch = batch_of([ITEM, ITEM])
    logp = batch.logp_ref + A[:, 0, :4].repeat(2, 1)
    whole, _ = loss_of(RevisionLoss(), batch, logp)
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    part = replace(batch, totals=batch.counted()).select(kept)
    terms, _ = RevisionLoss()(Scores(logp[kept]), part)
    assert float(terms["reference"]) == pytest.approx(float(whole["reference"]))
    assert float(terms["revision"]) == pytest.approx(float(whole["revision"]) / 2)
    assert float(terms["reference_image"]) == pytest.approx(float(whole["reference_image"]) / 2)


# --- items -----------------------------------------------------------------------------------------------------------
TEXT = "transformer:layers=1,width=16,heads=2,context=256"
REPORT = [
    Revision("A dog.", 4, "correct", "A dog."), Revision(" It is red.", 1, "image_recognition_error", " It is brown."),
    Revision("", 4, "correct", " It barks."),
]  # fmt: skip


def text_prompt(truncated=False):
    asked = Prompt("p", ({"role": "user", "content": "What?"},), reference="A brown dog.")
    return with_report(asked, "A dog. It is red.", REPORT, truncated=truncated)


def text_task(*prompts):
    return RecordedTask("t", list(prompts), [], 64, {})


def test_an_item_of_text():
    policy, prompt = load_policy(TEXT), text_prompt()
    item = revised_item(policy, text_task(prompt), prompt)
    assert [policy.decode(x) for x in (item.reference, item.generated, item.revision)] == [
        "A brown dog.", "A dog. It is red.", "A dog. It is brown. It barks.",
    ]  # fmt: skip
    for ids, sentence in ((item.generated, item.generated_sentence), (item.revision, item.revision_sentence)):
        assert ids[-1] in policy.stop_ids
        assert sentence[-1] == sentence[-2]
        assert len(sentence) == len(ids)
    cut = text_prompt(truncated=True)
    shorter = revised_item(policy, text_task(cut), cut)
    assert shorter.generated.tolist() == item.generated[:-1].tolist()
    assert shorter.revision.tolist() == item.revision.tolist()


def test_shared_sentences_have_shared_ids_and_weights_go_with_their_sentence():
    world = World(load_policy(TEXT), None, text_task(text_prompt()), Sampling(64), 0)
    [group] = opa_dpo().rollout(world, world.task.train, generator(0, "x"))
    assert [t.info["kind"] for t in group.trajectories] == [0, 1, 2]
    assert [t.info["score"] for t in group.trajectories] == [1.0, 0.0, 1.0]
    reference, generated, revision = (t.segments[0] for t in group.trajectories)
    assert reference.token_weight is None
    n = len("A dog.")
    assert generated.response[:n].tolist() == revision.response[:n].tolist()
    assert generated.token_weight.tolist() == [1.0] * n + [2.5] * (len(" It is red.") + 1)
    assert revision.token_weight.tolist() == [1.0] * n + [2.5] * len(" It is brown.") + [1.0] * (len(" It barks.") + 1)
    [plain] = opa_dpo(weighted=False).rollout(world, world.task.train, generator(0, "x"))
    assert all((t.segments[0].token_weight == 1).all() for t in plain.trajectories[1:])


class PutsASpace:
    """A tokenizer that puts a space before every text it encodes, and has a token for a space alone."""

    stop_ids = (0,)
    words = ("</s>", "▁", "▁A", "▁B", ".")

    def encode_reference(self, prompt):
        text, ids = prompt.reference, []
        if isinstance(text, tuple):
            return np.array([*text, 0])
        if text.startswith(" "):
            ids.append(1)
        for word in text.replace(".", " .").split():
            ids.append(self.words.index(word if word == "." else "▁" + word))
        return np.array([*ids, 0])

    def decode(self, ids):
        return "".join(self.words[i] for i in ids if i).replace("▁", " ").removeprefix(" ")


def test_sentences_are_encoded_without_a_token_for_the_space_before_them():
    ids, sentence = joined(PutsASpace(), Prompt("p", ({"role": "user", "content": "?"},)), ["A.", " B."], ends=True)
    assert ids.tolist() == [2, 4, 3, 4, 0]
    assert sentence.tolist() == [0, 0, 1, 1, 1]


def test_an_item_without_an_answer_is_refused():
    with pytest.raises(InputError, match="'p'"):
        joined(load_policy(TEXT), Prompt("p", ({"role": "user", "content": "?"},)), ["", ""], ends=True)
    with pytest.raises(InputError, match="anypolicy revise"):
        training.plan("opa-dpo", training.Settings("tiny-add"))


# --- slots -----------------------------------------------------------------------------------------------------------
def slots_world(seed=0, items=40):
    task = Slots(seed, items=items, heldout=4, wording=2.0)
    policy = task.make_policy(seed)
    return World(policy, NativeEngine(policy), task, Sampling(task.max_tokens), seed)


def items_of(world):
    found = generated_items(world, list(world.task.train))
    return [p for p in found if isinstance(p, Prompt)]


def test_the_expert_of_slots_corrects_what_is_wrong_and_no_more():
    world = slots_world()
    items = items_of(world)
    assert len(items) == 40
    for p in items:
        report, truth = p.info["report"], p.answer
        assert "".join(r.sentence for r in report) == p.info["generated"]
        after = revised(report).split()
        for before, new, r, v in zip(p.info["generated"].split(), after, report, truth, strict=True):
            right = int(before) % 6 == v
            assert (r.score, r.error) == ((4, "correct") if right else (1, "image_recognition_error"))
            assert new == (before if right else str(6 + v))
        assert world.task.score(p, np.array([int(w) for w in after]), "").correct


def test_five_rows_an_item_two_of_them_under_one_masked_picture():
    world = slots_world()
    task = RecordedTask("items", items_of(world), [], 6, {})
    world = replace(world, task=task)
    groups = opa_dpo().rollout(world, task.train, generator(0, "x"))
    batch = from_groups(groups, max_tokens=6)
    assert len(batch.media) == 2 * len(groups) == len(batch.context)
    for group in groups:
        rows = {Kind(t.info["kind"]): t.segments[0] for t in group.trajectories}
        assert len(rows) == 5
        own, hidden = rows[Kind.REVISED].media["pixels"], rows[Kind.MASKED_REVISED].media["pixels"]
        assert rows[Kind.MASKED_REFERENCE].media["pixels"] is hidden
        assert int((own != hidden).sum()) == 14
        assert rows[Kind.REVISED].response.tolist() == rows[Kind.MASKED_REVISED].response.tolist()
        wrong = np.array([r.score == 1 for r in group.prompt.info["report"]])
        assert rows[Kind.REVISED].token_weight.tolist() == np.where(wrong, 2.5, 1).tolist()
        assert rows[Kind.MASKED_REVISED].token_weight.tolist() == np.where(wrong, 3.0, 1).tolist()
    again = opa_dpo().rollout(world, task.train, generator(1, "x"))
    assert not torch.equal(
        again[0].trajectories[3].segments[0].media["pixels"], groups[0].trajectories[3].segments[0].media["pixels"]
    )


def slots_loop(recipe, world, lr=1e-3, prompts=8):
    import copy

    recipe = replace(recipe, optimiser=replace(recipe.optimiser, lr=lr, warmup=0))
    return GroupLoop(
        recipe, world, prompts=prompts, micro_tokens=1 << 20, reference=copy.deepcopy(world.policy), total_steps=4
    )


def test_a_run_begins_at_its_reference_and_learns_the_corrections():
    world = slots_world()
    world = replace(world, task=RecordedTask("items", items_of(world), [], 6, {}))
    loop = slots_loop(opa_dpo(), world)
    first = loop.step()
    same = np.mean([p.info["generated"] == revised(p.info["report"]) for p in (g.prompt for g in loop.seen)])
    assert first["loss/reference"] == pytest.approx(LOG2, abs=1e-5)
    assert first["loss/revision"] == pytest.approx(LOG2 * (1 - same), abs=1e-5)
    assert first["loss/reference_image"] == pytest.approx(0.2 * LOG2, abs=1e-5)
    assert first["loss/reference_anchor"] + first["loss/revision_anchor"] == pytest.approx(2 * LOG2, abs=1e-5)
    assert first["opa/corrected_logp_ref"] < -1
    for _ in range(15):
        last = loop.step()
    assert last["pairs/chosen"] > 0 > last["pairs/rejected"]
    assert last["opa/revised"] > 0
    assert last["loss/revision"] < first["loss/revision"]


def test_a_mask_of_nothing_has_no_gradient():
    world = slots_world()
    world = replace(world, task=RecordedTask("items", items_of(world), [], 6, {}))
    plain, off = (slots_loop(r, world) for r in (opa_dpo(image_coef=0), opa_dpo(mask_ratio=0)))
    gradients = []
    for loop in (plain, off):
        batch, _ = loop.collect()
        batch = loop.with_baseline(replace(loop.referenced(batch), totals=batch.counted()))
        active = loop.recipe.loss.active(batch)
        assert int(active.sum()) == 8 * (3 if loop is plain else 5)
        [terms] = list(loop.parts(batch.select(active)))
        loop.world.policy.module.zero_grad()
        sum(terms.terms.values()).backward()
        gradients.append([p.grad.clone() for p in loop.world.policy.module.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert float(terms.terms["revision_image"].detach()) == pytest.approx(0.2 * LOG2, abs=1e-5)


def test_masked_rows_are_not_kept_by_the_reference():
    world = slots_world()
    world = replace(world, task=RecordedTask("items", items_of(world), [], 6, {}))
    loop = slots_loop(opa_dpo(), world, prompts=40)
    loop.step()
    known = len(loop.reference.known)
    loop.step()
    assert len(loop.reference.known) == known <= 3 * 40


# --- compositions and settings ---------------------------------------------------------------------------------------
def test_its_answers_are_pairs_for_other_losses():
    world = slots_world()
    world = replace(world, task=RecordedTask("items", items_of(world), [], 6, {}))
    loop = slots_loop(compose("opa-dpo+dpo.loss").recipe, world)
    batch, _ = loop.collect()
    differ = sum(revised(g.prompt.info["report"]) != g.prompt.info["generated"] for g in loop.seen)
    assert len(batch.pairs) == 8 + differ
    kinds = batch.kind[batch.pairs]
    assert set(kinds[:, 0].tolist()) <= {Kind.REFERENCE, Kind.REVISED}
    assert set(kinds[:, 1].tolist()) == {Kind.GENERATED}


def test_its_loss_needs_its_rollout():
    for spec in ("dpo+opa-dpo.loss", "grpo+opa-dpo.loss", "opa-dpo+dpo.rollout"):
        with pytest.raises(InputError, match="kind of answer"):
            lock_check(compose(spec).recipe)


def lock_check(recipe):
    from anypolicy.stages.checks import check

    check(recipe, 8)


def test_the_lock_plays_the_expert_on_its_worst_response():
    loop = lock_loop(opa_dpo())
    groups = loop.sample(0)
    for group in groups:
        reference, generated, revision = (t.response.tolist() for t in group.trajectories)
        scores = group.prompt.info["scores"]
        assert tuple(generated) == group.prompt.info["responses"][scores.index(min(scores))]
        assert reference == revision == loop.world.task.target[group.prompt.tokens[0]].tolist()


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"beta": 0.0}, "beta"), ({"mask_ratio": 1.5}, "mask_ratio"), ({"image_coef": -1.0}, "coefficients"),
     ({"reference_coef": 0.0, "revision_coef": 0.0, "anchor_coef": 0.0}, "not 0 for all")],
)  # fmt: skip
def test_bad_settings(settings, match):
    with pytest.raises(InputError, match=match):
        opa_dpo(**settings)
    with pytest.raises(InputError, match="group_size"):
        replace(opa_dpo().rollout, group_size=4)
