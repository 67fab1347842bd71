"""Behaviour cloning from the command line: train, stop and go on, evaluate; what it refuses."""

import json
from dataclasses import replace

import pytest
import torch

from anypolicy.cli.app import main
from anypolicy.data.demonstrations import Episode, save_episodes
from anypolicy.data.transitions import Transitions
from anypolicy.errors import InputError
from anypolicy.families.control import ControlSettings, evaluate_run, plan, resume, train_controller
from anypolicy.learners.base import tensors_of
from anypolicy.loops.control import OfflineLoop
from anypolicy.methods.control.bc import Cloning, saved_policy
from anypolicy.tasks.control.environments import Space, load_environment

TASK = "gym/Pendulum-v1:max_steps=20"
SMALL = {"hidden": (16, 16), "batch": 16}


@pytest.fixture
def demos(tmp_path):
    """Episodes whose action is a function of the state."""
    rng, path = torch.Generator().manual_seed(0), tmp_path / "demos.safetensors"
    made = []
    for _ in range(8):
        seen = torch.randn(21, 3, generator=rng)
        made.append(Episode(seen, seen[:-1, 2:].tanh(), torch.zeros(20), torch.zeros(20), torch.zeros(20)))
    save_episodes(path, made)
    return path


def settings(demos, tmp_path, name="run", **more):
    return {"task": TASK, "demos": str(demos), "steps": 40, "trackers": (), "eval_episodes": 2,
            "out": tmp_path / name, "quiet": True} | more  # fmt: skip


@pytest.mark.parametrize("policy", ["flow", "ddim", "ddpm", "mean"])
def test_a_run_learns_and_goes_on_to_the_same_bits(demos, tmp_path, policy):
    knobs = SMALL | {"policy": policy, "denoising_steps": 10}
    whole = train_controller("bc", knobs=knobs, **settings(demos, tmp_path, "whole"))
    train_controller("bc", knobs=knobs, **settings(demos, tmp_path, "half", steps=16, checkpoint_every=8, eval_every=4))
    again = resume(tmp_path / "half", steps=40, quiet=True)
    for name, value in tensors_of(whole.learner).items():
        assert torch.equal(value, tensors_of(again.learner)[name]), name
    losses = [r["loss/clone"] for r in whole.rows if "loss/clone" in r]
    assert len(losses) >= 1 and all(torch.tensor(losses).isfinite())
    assert {"eval/return", "eval/length"} <= evaluate_run(tmp_path / "whole", episodes=1).keys()


def test_cloning_finds_the_demonstrators_function(demos, tmp_path):
    knobs = {"policy": "mean", "hidden": (32, 32), "lr": 3e-3, "average": 0.05}
    run = train_controller("bc", knobs=knobs, **settings(demos, tmp_path, steps=600))
    seen = torch.randn(100, 3, generator=torch.Generator().manual_seed(5))
    acted = run.learner.act(seen, torch.Generator(), explore=False).executed
    assert (acted - seen[:, 2:].tanh()).abs().mean() < 0.1
    assert (run.learner.policy.network.inputs.std > 0.8).all()


def test_the_command_line(demos, tmp_path, capsys):
    out = tmp_path / "cli"
    command = ["train", "bc", "--task", TASK, "--demos", str(demos), "--steps", "20", "--bc.hidden", "16", "16", "--trackers",
               "--eval-episodes", "1", "--bc.policy", "ddim", "--bc.denoising-steps", "5", "--out", str(out), "--quiet"]  # fmt: skip
    assert main(command) == 0
    assert json.loads((out / "policy" / "config.json").read_text())["method"] == "bc"
    assert main(["eval", str(out), "--episodes", "1"]) == 0
    assert main(["explain", "bc", "--task", TASK, "--demos", str(demos)]) == 0
    assert "updates on demonstrations" in capsys.readouterr().out
    assert main(["show", "bc"]) == 0


def test_choices_are_cloned_by_a_softmax(tmp_path):
    rng, made = torch.Generator().manual_seed(0), []
    for _ in range(8):
        seen = torch.randn(21, 4, generator=rng)
        made.append(Episode(seen, (seen[:-1, 2:3] > 0).float(), torch.ones(20), torch.zeros(20), torch.zeros(20)))
    save_episodes(tmp_path / "choices.safetensors", made)
    given = settings(tmp_path / "choices.safetensors", tmp_path, task="gym/CartPole-v1:max_steps=20")
    knobs = {"hidden": (32, 32), "lr": 3e-3, "batch": 64}
    whole = train_controller("bc", knobs=knobs, **given | {"steps": 300})
    train_controller("bc", knobs=knobs, **given | {"steps": 100, "checkpoint_every": 50, "out": tmp_path / "half"})
    again = resume(tmp_path / "half", steps=300, quiet=True)
    for name, value in tensors_of(whole.learner).items():
        assert torch.equal(value, tensors_of(again.learner)[name]), name
    seen = torch.randn(2000, 4, generator=rng)
    acted = whole.learner.act(seen, rng, explore=False).executed
    assert (acted[:, 0] == (seen[:, 2] > 0).float()).float().mean() > 0.8
    assert torch.tensor([r["loss/clone"] for r in whole.rows if "loss/clone" in r])[-1] < 0.3
    with pytest.raises(InputError, match="no actions from noise"):
        saved_policy(tmp_path / "run" / "policy", load_environment("gym/CartPole-v1").space)


def test_a_saved_policy_comes_back(demos, tmp_path):
    run = train_controller("bc", knobs=SMALL, **settings(demos, tmp_path))
    space = load_environment(TASK).space
    policy = saved_policy(tmp_path / "run" / "policy", space)
    seen, w = torch.randn(4, 3), torch.randn(4, 1)
    assert torch.equal(policy.decode(seen, w), run.learner.policy.decode(seen, w))
    with pytest.raises(InputError, match="another space"):
        saved_policy(tmp_path / "run" / "policy", replace(space, observations=5))
    with pytest.raises(InputError, match="no controller"):
        saved_policy(tmp_path, space)


def test_what_is_refused_before_any_work(demos, tmp_path):
    with pytest.raises(InputError, match="demonstrations"):
        plan("bc", ControlSettings(TASK))
    with pytest.raises(InputError, match="denoising_steps"):
        plan("bc", ControlSettings(TASK, demos=str(demos)), {"denoising_steps": 0})
    with pytest.raises(InputError, match="average"):
        plan("bc", ControlSettings(TASK, demos=str(demos)), {"average": 0.0})
    with pytest.raises(InputError, match="demos"):
        OfflineLoop(plan("bc", ControlSettings(TASK, demos=str(demos))).recipe, None, 0).run(1)


def test_losses_by_hand():
    """Choices: −mean ln softmax. A flow: the mean of (v − (a − ε))² at x = (1 − τ) ε + τ a. One action: the mean squared error."""
    rng, zeros = torch.Generator().manual_seed(0), torch.zeros(6)
    seen, choice = torch.randn(6, 3, generator=rng), torch.tensor([[0.0], [2], [1], [1], [0], [2]])
    learner = Cloning(hidden=(8,))(Space(3, 3, True), 0)
    logp = learner.actor.net(seen).detach().log_softmax(-1)
    log = learner.update([Transitions(seen, choice, zeros, seen, zeros, zeros, zeros)], rng)
    assert log["loss/clone"] == pytest.approx(-sum(float(logp[i, int(a)]) for i, a in enumerate(choice)) / 6, rel=1e-5)
    action = torch.rand(6, 2, generator=rng) * 2 - 1
    batch = Transitions(seen, action, zeros, seen, zeros, zeros, zeros)
    for kind in ("flow", "mean"):
        learner = Cloning(policy=kind, hidden=(8,), average=0.25)(Space(3, 2, False, (-1.0,) * 2, (1.0,) * 2), 0)
        again = torch.Generator().manual_seed(7)
        noise, time = torch.randn(6, 2, generator=again), torch.rand(6, 1, generator=again)
        with torch.no_grad():
            network = learner.policy.network
            if kind == "flow":
                error = network(seen, (1 - time) * noise + time * action, time) - (action - noise)
            else:
                error = network(seen) - action
        before = {k: v.detach().clone() for k, v in network.named_parameters()}
        log = learner.update([batch], torch.Generator().manual_seed(7))
        assert log["loss/clone"] == pytest.approx(float((error**2).sum()) / 12, rel=1e-5)
        after = dict(network.named_parameters())
        means = [name for name in before if name.startswith("average") and not torch.equal(before[name], after[name])]
        assert means, "what acts follows, the first time nine tenths of the way"
        for name in means:
            online = after[name.replace("average", "online", 1)]
            torch.testing.assert_close(after[name], before[name] + 0.9 * (online - before[name]))
