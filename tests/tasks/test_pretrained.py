"""Starting policies that a task trains itself: a run that trains one and a run that finds it are the same."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anypolicy.families.diffusion import train_diffusion
from anypolicy.tasks.diffusion import ring8
from anypolicy.tasks.pretrained import trained_once


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path / "home"))


def made():
    policy = SimpleNamespace(module=nn.Linear(2, 1).eval())
    for p in policy.module.parameters():
        nn.init.ones_(p)
    return policy


def test_only_weights_reach_the_policy_that_asked_for_them():
    seen = []

    def train(policy):
        seen.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))
        policy.module.train().bias.requires_grad_(False)
        policy.module(torch.ones(1, 2)).sum().backward()
        with torch.no_grad():
            policy.module.weight.mul_(3)

    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    try:
        first, second = made(), made()
        for policy in (first, second):
            trained_once(policy, "test", [1], train)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "medium")
    finally:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
    assert seen == [(1, "highest")]
    for policy in (first, second):
        assert policy.module.weight.tolist() == [[3, 3]]
        assert all(p.grad is None and p.requires_grad for p in policy.module.parameters())
        assert not policy.module.training


def test_the_run_that_trains_the_base_has_the_bits_of_the_next_one(monkeypatch, tmp_path):
    monkeypatch.setattr(ring8, "UPDATES", 3)
    for name in ("trains", "finds"):
        train_diffusion(
            "seppo", task="ring8:winners=64", steps=2, seed=0, out=tmp_path / name, eval_samples=8, threads=1
        )
    for file in ("metrics.jsonl", "policy/model.safetensors"):
        assert (tmp_path / "trains" / file).read_bytes() == (tmp_path / "finds" / file).read_bytes()
