"""MDLM: the loss by hand, references filled up, a data set learnt from scratch on the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from anypolicy.cli.app import main
from anypolicy.compose import compose
from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Prompt, Trajectory
from anypolicy.errors import InputError
from anypolicy.methods.supervised.mdlm import EvidenceLoss, filled
from anypolicy.policies.language.masked_diffusion import small_denoiser
from anypolicy.stages.elbo import elbo_samples
from tests.helpers import lock_loop, segment


def batch_of_targets():
    groups = []
    for g, ids in enumerate([[1, 2, 9, 9], [3, 9, 9, 9]]):
        t = Trajectory(str(g), [segment(ids, [4, 5])], target=True)
        groups.append(Group(str(g), Prompt(str(g)), [t]))
    batch = from_groups(groups, torch.float64, 4)
    return replace(batch, totals=batch.counted(), row_seed=torch.tensor([11, 12]))


def test_the_loss_is_minus_the_elbo_a_token():
    policy = small_denoiser(vocabulary=11, layers=1, width=16, heads=2, context_length=8, seed=0, eos_id=9, mask_id=10)
    batch = batch_of_targets()
    parts = list(EvidenceLoss(3).passes(policy, batch, 1.0))
    assert len(parts) == 3
    total = sum(float(p.terms["elbo"].detach()) for p in parts)
    ell = torch.stack(list(elbo_samples(policy, batch, batch.target, 1.0, 3, "count")))
    assert total == pytest.approx(-float(ell.mean(0).sum().detach()) / 8, rel=1e-6)
    weighted = replace(batch, weight=torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert EvidenceLoss().active(weighted).tolist() == [False, True]
    total = sum(float(p.terms["elbo"].detach()) for p in EvidenceLoss(3).passes(policy, weighted, 1.0))
    assert total == pytest.approx(-2 * float(ell.mean(0)[1].detach()) / 8, rel=1e-6)


def test_references_are_filled_up_with_their_stop_token():
    s = filled(segment([1, 2, 9], [4]), 6, (9,), Prompt("a"))
    assert s.response.tolist() == [1, 2, 9, 9, 9, 9] and s.answer.tolist() == [1, 2, 9] and s.mask.all()
    assert len(s.logp) == len(s.version) == 6 and (s.version == -1).all()
    assert filled(segment([1, 2, 9], [4]), 3, (9,), Prompt("a")).response.tolist() == [1, 2, 9]
    with pytest.raises(InputError, match="max_tokens = 2"):
        filled(segment([1, 2, 9], [4]), 2, (9,), Prompt("a"))
    with pytest.raises(InputError, match="no stop token"):
        filled(segment([1, 2], [4]), 3, (), Prompt("a"))


def test_nothing_is_sampled_and_nothing_is_scored():
    loop = lock_loop(compose("mdlm").recipe)
    loop.world = replace(loop.world, engine=None)
    loop.world.task.score = None
    log = loop.step()
    assert log["target/tokens"] == 8 * 3 and log["loss/elbo"] > 0


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{'ab'[i % 2]}{i}", "response": "ab"[i % 2] * 2} for i in range(30)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_a_data_set_is_learnt_from_scratch_and_a_stopped_run_goes_on_to_the_same_bits(data, capsys):
    policy = ["--policy", "masked-diffusion:layers=1,width=16,heads=2,context=16", "--max-tokens", "4", "--trackers"]
    command = ["train", "mdlm", "--task", "data.jsonl", *policy, "--prompts", "8", "--lr", "0.01", "--quiet"]
    command += ["--eval-every", "20", "--checkpoint-every", "20"]
    assert main([*command, "--steps", "40", "--out", "whole"]) == 0
    rows = [json.loads(line) for line in (data / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss/elbo"] for r in rows if "loss/elbo" in r]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert main([*command, "--steps", "20", "--out", "part"]) == 0
    assert main(["resume", "part", "--steps", "40", "--quiet"]) == 0
    assert (data / "part" / "metrics.jsonl").read_bytes() == (data / "whole" / "metrics.jsonl").read_bytes()
    first, second = ((data / n / "policy" / "model.safetensors").read_bytes() for n in ("whole", "part"))
    assert first == second
    capsys.readouterr()
    assert main(["train", "mdlm", "--task", "data.jsonl", *policy[:3], "2", "--trackers", "--quiet"]) == 2
    assert "must fit into max_tokens = 2" in capsys.readouterr().err.replace("\n", " ")
