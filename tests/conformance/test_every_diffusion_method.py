"""One suite for every method of the diffusion family. A new method file is tested by being there."""

import dataclasses

import numpy as np
import pytest
import torch

from anypolicy import catalogue
from anypolicy.evaluation.diffusion import judged
from anypolicy.families import diffusion
from anypolicy.policies.diffusion.denoisers import copied
from anypolicy.runs import drive
from anypolicy.runs.checkpoint import latest_checkpoint, load_checkpoint
from anypolicy.runs.metrics import documented
from anypolicy.runs.stop import Stopped
from tests.helpers import StopAt

METHODS = sorted(slug for slug, m in catalogue.methods(None).items() if m.family == "diffusion")
SMALL = {"batch": 8, "stage": 2}


def trained(slug, out, steps, **more):
    m = catalogue.get(slug, "diffusion")
    knobs = {k: v for k, v in SMALL.items() if k in m.knobs}
    settings = {"task": "ring8:winners=20", "policy": "fresh", "trackers": (), "eval_samples": 20, "threads": 1}
    return diffusion.train_diffusion(slug, knobs=knobs, steps=steps, out=out, quiet=True, **(settings | more))


def content(run):
    """Everything a run leaves that must not depend on when it was stopped."""
    saved = load_checkpoint(latest_checkpoint(run.path))
    rows = [r for r in run.rows if "event" in r]
    return rows, {k: {n: t.numpy().tobytes() for n, t in v.items()} for k, v in saved.tensors.items()}


@pytest.mark.parametrize("slug", METHODS)
def test_card_and_header_are_complete(slug):
    m = catalogue.get(slug, "diffusion")
    for name in ("title", "paper", "idea", "composes_with", "claim"):
        assert getattr(m.card, name)
    assert m.card.family == "diffusion"
    for word in ("Paper:", "Idea:", "Changes:", "Silent:", "Differs:"):
        assert word in m.header
    assert (m.build.__doc__ or "").strip()
    assert dataclasses.is_dataclass(m.recipe().learner) and m.recipe() == m.recipe()


@pytest.mark.parametrize("slug", METHODS)
def test_a_run_that_is_stopped_and_made_longer_is_the_whole_run(slug, tmp_path, monkeypatch):
    """It is stopped in the middle of a row of the ledger."""
    whole = trained(slug, tmp_path / "whole", 6, eval_every=3, checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(drive, "first_signal", StopAt(2))
        with pytest.raises(Stopped):
            trained(slug, tmp_path / "part", 3, eval_every=3, checkpoint_every=3)
    diffusion.resume(tmp_path / "part", quiet=True)
    part = diffusion.resume(tmp_path / "part", steps=6, quiet=True)
    assert content(whole) == content(part)
    more = catalogue.get(slug, "diffusion").card.metrics
    for row in whole.rows:
        numbers = {k: v for k, v in row.items() if k != "event"}
        assert [name for name in numbers if not documented(name, more)] == []
        assert np.isfinite(list(numbers.values())).all()
    assert set(more) <= {name for row in whole.rows for name in row}
    fresh = diffusion.load_pictures("ring8:winners=20").fresh(0)
    before, after = copied(fresh.module), copied(whole.model.module)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert {"eval/error", "eval/distance", "eval/preferred"} <= set(whole.evaluations()[-1])


@pytest.mark.parametrize("slug", METHODS)
def test_same_seed_same_bits_and_the_saved_model_samples_as_the_trained_one(slug, tmp_path):
    runs = [trained(slug, tmp_path / f"{i}", 3, seed=s) for i, s in enumerate((3, 3, 4))]
    assert content(runs[0]) == content(runs[1])
    assert content(runs[0]) != content(runs[2])
    loaded = diffusion.load_diffusion(runs[0].path / "policy")
    made = [m.sample(m.condition([0] * 5), torch.Generator().manual_seed(1)) for m in (runs[0].model, loaded)]
    assert torch.equal(*made)


@pytest.mark.parametrize("slug", METHODS)
def test_an_evaluation_needs_nothing_but_the_weights_and_changes_nothing(slug, tmp_path):
    """No pool of references, flipped pair or schedule: the saved network alone is judged as the trained one, twice."""
    run = trained(slug, tmp_path / "run", 3)
    loaded, before = diffusion.load_diffusion(run.path / "policy"), copied(run.model.module)
    found = [judged(run.task, model, 6, 3) for model in (run.model, run.model, loaded)]
    for log, samples, labels in found[1:]:
        assert log == found[0][0] and torch.equal(samples, found[0][1]) and labels == found[0][2]
    assert all(torch.equal(before[k], x) for k, x in copied(run.model.module).items())
