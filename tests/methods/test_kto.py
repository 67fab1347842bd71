"""KTO on a batch: the worked numbers, the mismatched responses, labels from a file, and one prompt alone."""

import json
from dataclasses import replace

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.methods.preference.kto import KahnemanTversky, kto, mismatched
from anypolicy.policies.language.base import Scores
from anypolicy.stages.checks import check
from anypolicy.tasks.language.load import load_task
from tests.helpers import lock_loop
from tests.methods.test_dpo import CHOSEN, REF_CHOSEN, REF_REJECTED, REJECTED, example, filled


def pair(baseline):
    batch = example([([1, 2, 3], 1.0)], [([4, 5], 0.0)])
    return replace(batch, logp_ref=filled(batch, [REF_CHOSEN, REF_REJECTED]), baseline=baseline, pairs=None)


def test_the_example():
    batch = pair(0.2)
    x = filled(batch, [CHOSEN, REJECTED]).requires_grad_()
    terms, log = KahnemanTversky()(Scores(x), batch)
    assert float(terms["preference"].detach()) == pytest.approx(0.490001, abs=5e-7)
    terms["preference"].backward()
    assert (x.grad[0] < 0).all() and (x.grad[1, :2] > 0).all()
    assert float(log["kto/baseline"]) == pytest.approx(0.2)
    assert float(log["kto/right"]) == 1
    assert float(log["kto/desirable"]) == 0.5
    weighted = KahnemanTversky(0.1, 3.0, 1.0)(Scores(x), batch)[0]["preference"]
    assert float(weighted.detach()) == pytest.approx(2 * 0.490001, abs=1e-6)


def test_every_response_meets_the_next_prompt():
    batch = example([([1], 1.0), ([2], 0.0)], [([3], 1.0)], [([4], 0.0)])
    other = mismatched(batch)
    assert batch.context[batch.context_index].flatten().tolist() == [0, 0, 1, 2]
    assert other.context[other.context_index].flatten().tolist() == [1, 1, 2, 0]


def test_the_baseline_is_the_clamped_mean_of_the_mismatched():
    batch = example([([1], 1.0)], [([2], 0.0)])
    seen = []

    def scored(value):
        return lambda part: seen.append(part.context_index.tolist()) or torch.full((2, 1), value, dtype=torch.float64)

    assert KahnemanTversky().baseline(batch, scored(-1.0), scored(-1.5)) == pytest.approx(0.5)
    assert KahnemanTversky().baseline(batch, scored(-2.0), scored(-1.5)) == 0
    assert seen == [[1, 0]] * 4


def test_one_prompt_has_no_mismatched_response():
    with pytest.raises(InputError, match="at least 2"):
        check(kto(), 1)
    with pytest.raises(InputError, match="at least 2"):
        check(replace(kto(), optimiser=replace(kto().optimiser, minibatches=2)), 3)
    check(kto(), 2)
    log = lock_loop(kto(), prompts=1).step()
    assert (log["updates"], log["updates/skipped"]) == (0, 1)


def test_labels_of_a_file(tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"{i}?", "completion": f"{i % 3}", "label": i % 2 == 0} for i in range(20)]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    task = load_task(str(path))
    assert sorted(s for p in task.train + task.heldout for s in p.info["scores"]) == [0.0] * 10 + [1.0] * 10
    assert all((p.reference is None) == (p.info["scores"] == [0.0]) for p in task.train)
    run = training.train("kto", task=str(path), policy="transformer:layers=1,width=16,heads=2", steps=2, quiet=True,
                         trackers=(), out=tmp_path / "run", prompts=4)  # fmt: skip
    assert run.rows[1]["loss/preference"] == pytest.approx(0.5, abs=1e-4)
    path.write_text(path.read_text() + '\n{"prompt": "x", "completion": "y", "label": 1}')
    with pytest.raises(InputError, match=r"line 21.*true or false"):
        load_task(str(path))
