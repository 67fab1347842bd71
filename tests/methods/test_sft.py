"""SFT by hand, on a real network, and from the command line."""

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
from anypolicy.evaluation.language import likelihood
from anypolicy.families.language import Settings, plan
from anypolicy.methods.supervised.sft import NegativeLogLikelihood
from anypolicy.policies.language.base import Scores
from anypolicy.policies.language.table import TablePolicy
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.stages.checks import check
from anypolicy.stages.targets import reference_target
from tests.helpers import lock_loop, segment


def targets(*lengths, response=None):
    """One target a group, and in the first group a sampled response that SFT must not see."""
    groups = []
    for g, n in enumerate(lengths):
        ts = [Trajectory(f"{g}", [segment(response or [0] * n, [g])], target=True)]
        if g == 0:
            ts.append(Trajectory("sampled", [segment([1] * 5, [g])], reward=1.0))
        groups.append(Group(str(g), Prompt(str(g), tokens=(g,)), ts))
    batch = from_groups(groups, torch.float64, 8)
    return replace(batch, totals=batch.counted())


def test_loss_and_gradient_of_one_token():
    policy = TablePolicy(torch.tensor([[[2.0, 1.0, 0.0, -1.0]]], dtype=torch.float64))
    prompt = Prompt("a", tokens=(0,), reference=(0,))
    batch = from_groups([Group("a", prompt, [reference_target(policy, prompt)])], torch.float64)
    loss = NegativeLogLikelihood()(policy.score(batch, 1.0), batch).terms["nll"]
    assert loss.item() == pytest.approx(0.440190, abs=1e-6)
    loss.backward()
    slope = policy.module.logits.grad[0, 0].tolist()
    assert slope == pytest.approx([-0.356086, 0.236883, 0.087144, 0.032059], abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "want"),
    [("token-mean", (1 + 1 + 4) / 3), ("seq-mean-token-mean", (1 + 4) / 2), ("seq-mean-token-sum", (2 + 4) / 2)],
)
def test_aggregation_counts_target_tokens_only(mode, want):
    batch = targets(2, 1)
    logp = torch.full(batch.response.shape, -99.0, dtype=torch.float64)
    logp[batch.target] = torch.tensor([-1.0, -1.0, -4.0], dtype=torch.float64)
    loss = NegativeLogLikelihood(mode)
    assert loss(Scores(logp), batch).terms["nll"].item() == pytest.approx(want)
    assert loss.active(batch).tolist() == [True, False, True]
    parts = [batch.select(torch.tensor([i])) for i in range(3)]
    shares = [loss(Scores(logp[[i], : p.response.shape[1]]), p).terms["nll"].item() for i, p in enumerate(parts)]
    assert sum(shares) == pytest.approx(want)


def test_a_selection_may_weight_rows():
    batch = targets(2, 1)
    batch = replace(batch, weight=torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64))
    loss = NegativeLogLikelihood()
    assert loss.active(batch).tolist() == [False, False, True]
    logp = torch.full(batch.response.shape, -2.0, dtype=torch.float64)
    assert loss(Scores(logp), batch).terms["nll"].item() == pytest.approx(3 * 2 / 3)


def test_it_is_cross_entropy_on_a_network():
    policy = small_transformer(
        vocabulary=11, layers=2, width=16, heads=2, context_length=12, seed=0, eos_id=10, pad_id=0
    )
    policy.module.double()
    prompts = [Prompt(str(i), tokens=tuple(range(1, 3 + i)), reference=tuple(range(4 - i))) for i in range(3)]
    batch = from_groups([Group(p.id, p, [reference_target(policy, p)]) for p in prompts], torch.float64)
    ours = NegativeLogLikelihood()(policy.score(batch, 1.0), batch).terms["nll"]
    total, tokens = 0.0, 0
    for p in prompts:
        ids = torch.tensor([(*p.tokens, *p.reference, 10)])
        n = len(p.reference) + 1
        logits = policy.module(input_ids=ids[:, :-1]).logits[0, -n:]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, -n:], reduction="sum"))
        tokens += n
    assert ours.item() == pytest.approx(total / tokens, abs=1e-9)
    measured = likelihood(policy, prompts)
    assert measured["eval/logp"] == pytest.approx(-total / tokens, abs=1e-9)
    assert measured["eval/perplexity"] == pytest.approx(np.exp(total / tokens), rel=1e-9)


def test_nothing_is_sampled_and_nothing_is_scored():
    loop = lock_loop(compose("sft").recipe)
    loop.world = replace(loop.world, engine=None)
    loop.world.task.score = None
    log = loop.step()
    assert log["target/tokens"] == 8 * 3
    assert log["tokens/trained"] == 8 * 3
    assert not any(name.startswith(("reward", "accuracy", "tokens/generated")) for name in log)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("grpo+sft.loss", "gives no targets"), ("sft+grpo.loss", "samples no responses"),
        ("grpo+sft.reward", "sample no responses"), ("grpo+sft.advantage", "sample no responses"),
        ("sft+vade.sampler", "samples no responses"), ("sft+dapo.selection", "samples no responses"),
    ],
)  # fmt: skip
def test_stages_that_cannot_work_together(spec, says):
    with pytest.raises(InputError, match=says):
        check(compose(spec).recipe, 8)


def test_tasks_that_cannot_work():
    with pytest.raises(InputError, match="no reference response"):
        plan("sft", Settings("tabular-lock"))
    for setting in ({"group_size": 4}, {"reward": "mine.py:f"}):
        with pytest.raises(InputError, match="samples no responses"):
            plan("sft", Settings("tabular-lock:references=true", **setting))


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {'ab'[i % 2]}{i}", "response": "ab"[i % 2] * 3} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    talks = [{"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["response"]}]}
             for r in rows]  # fmt: skip
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(r) + "\n" for r in talks))
    return tmp_path


TINY = ["--policy", "transformer:layers=1,width=16,heads=2,context=32", "--trackers"]


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("spec", ["sft", "otr", "sft+otr.loss"])
def test_a_data_set_is_learnt_from_the_command_line(data, capsys, spec):
    command = ["train", spec, "--task", "data.jsonl", *TINY, "--prompts", "16", "--lr", "0.01", "--quiet"]
    assert main([*command, "--steps", "60", "--out", "whole"]) == 0
    evaluations = [r for r in rows(data / "whole") if r.get("event") == "eval"]
    assert evaluations[-1]["eval/perplexity"] < 0.5 * evaluations[0]["eval/perplexity"]
    assert "eval/accuracy" not in evaluations[-1]
    assert "perplexity" in (data / "whole" / "report.html").read_text()
    capsys.readouterr()
    assert main(["eval", "whole"]) == 0
    assert json.loads(capsys.readouterr().out)["eval/logp"] == evaluations[-1]["eval/logp"]


@pytest.mark.parametrize("spec", ["sft", "otr"])
def test_a_run_that_stopped_goes_on_to_the_same_bits(data, spec):
    command = ["train", spec, "--task", "talks.jsonl", *TINY, "--prompts", "8", "--lr", "0.01", "--quiet"]
    settings = ["--eval-every", "2", "--checkpoint-every", "2"]
    assert main([*command, *settings, "--steps", "6", "--out", "whole"]) == 0
    assert main([*command, *settings, "--steps", "4", "--out", "part"]) == 0
    assert main(["resume", "part", "--steps", "6", "--quiet"]) == 0
    assert (data / "part" / "metrics.jsonl").read_bytes() == (data / "whole" / "metrics.jsonl").read_bytes()
    for name in ("whole", "part"):
        assert (data / name / "policy" / "model.safetensors").exists()
    first, second = ((data / n / "policy" / "model.safetensors").read_bytes() for n in ("whole", "part"))
    assert first == second


def test_a_task_without_answers_is_not_for_methods_that_verify(data, capsys):
    assert main(["train", "grpo", "--task", "data.jsonl", *TINY]) == 2
    assert "no answers to verify" in capsys.readouterr().err.replace("\n", " ")
    assert not (data / "runs").exists()


def test_compare_takes_the_held_out_likelihood(data, capsys):
    command = ["compare", "sft", "otr", "--task", "data.jsonl", *TINY, "--seeds", "2", "--steps", "2", "--quiet"]
    assert main([*command, "--out", "cmp"]) == 0
    assert "eval/logp on data.jsonl" in capsys.readouterr().out
    assert main([*command, "--out", "cmp", "--metric", "eval/perplexity"]) == 2
