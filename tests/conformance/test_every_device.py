"""Every method of every family on a GPU that is pretended: it trains there, goes on there from a checkpoint of the
processor, is evaluated, and learns what it learns on the processor, since all random numbers come from there."""

import json
from pathlib import Path

import pytest
import torch

import anypolicy as ap
from anypolicy import catalogue
from anypolicy.compose import compose
from anypolicy.families import control, diffusion
from anypolicy.learners.base import device_of, weights_of
from anypolicy.policies.language.load import load_policy
from anypolicy.tasks.language import shapes
from tests.conformance import test_every_controller as controllers
from tests.conformance import test_every_diffusion_method as denoisers
from tests.conformance.test_every_controller import demonstrations  # noqa: F401
from tests.helpers import lock_loop
from tests.policies.test_image_models import images, pipeline  # noqa: F401
from tests.pretended_device import PretendedDevice, WrongDevice

GPU = torch.device("cuda", 0)
SAME = {"atol": 1e-6, "rtol": 1e-5}
"""Copies lie elsewhere in memory, and some products of the processor round by where their operands lie."""
NARROW = "layers=1,width=16,heads=2,context=64"
SMALL = {"prompts": 2, "group_size": 2, "eval_prompts": 2, "max_tokens": 8}
POLICIES = {
    "transformer": ("grpo", {"task": "tiny-add", "policy": f"transformer:{NARROW}"}),
    "bfloat16": ("grpo", {"task": "tiny-add", "policy": f"transformer:{NARROW}", "dtype": "bfloat16"}),
    "adapters": ("grpo", {"task": "tiny-add", "policy": "FOLDER", "lora_rank": 2}),
    "value head": ("ppo", {"task": "tiny-add", "policy": f"transformer:{NARROW}"}),
    "logits": ("otr", {"task": "ANSWERS", "policy": f"transformer:{NARROW}", "group_size": None}),
    "moving reference": (
        "spin",
        {"task": "ANSWERS", "prompts": 4, "policy": f"transformer:{NARROW}", "group_size": None},
    ),
    "picture reader": ("grpo", {"task": "slots", "max_tokens": None}),
    "vision": (
        "grpo",
        {"task": "shapes:prompts=20,heldout=4", "policy": "vlm:layers=1,width=16,heads=2,image=16,patch=8"},
    ),
    "one pass": ("diffu-grpo", {"task": "tiny-add", "policy": f"masked-diffusion:{NARROW}"}),
    "bound": ("vrpo-ol", {"task": "tiny-add", "policy": f"masked-diffusion:{NARROW}"}),
    "learned reward": ("grpo", {"task": "tiny-add", "policy": f"transformer:{NARROW}", "reward_model": "REWARDS"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of a policy, prompts with answers, pairs, and a reward model trained on them."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "policy").mkdir()
    load_policy(f"transformer:{NARROW}").save(folder / "policy")
    answers = [{"prompt": f"{i}", "response": f"{i + 1}"} for i in range(30)]
    pairs = [{"prompt": f"{i}", "chosen": f"{i + 1}", "rejected": f"{i}"} for i in range(30)]
    for name, rows in (("answers", answers), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards(folder, folder / "rewards", "cpu", epochs=0.2)
    made = {"FOLDER": "policy", "ANSWERS": "answers.jsonl", "REWARDS": "rewards", "PAIRS": "pairs.jsonl"}
    return {name: str(folder / file) for name, file in made.items()}


def rewards(folder, out, device, **more):
    settings = {"pairs": str(folder / "pairs.jsonl"), "policy": f"transformer:{NARROW}", "trackers": (), "quiet": True}
    return ap.train("bradley-terry", out=out, device=device, **settings, **more)


def weights(module):
    """What a module has learnt, on the processor."""
    return {name: x.detach().cpu() for name, x in module.state_dict().items()}


@pytest.mark.parametrize("slug", sorted(catalogue.methods()))
def test_a_language_method(slug):
    loop = lock_loop(compose(slug).recipe)
    rows = [loop.step() for _ in range(3)]
    with PretendedDevice() as gpu:
        there = lock_loop(compose(slug).recipe, device="cuda")
        assert there.world.policy.device == GPU
        assert [there.step() for _ in range(2)] == rows[:2]
        waits = sum(gpu.waits.values())
        again = lock_loop(compose(slug).recipe, device="cuda")
        again.restore(there.state(), {k: v.cpu().clone() for k, v in there.tensors().items()})
        assert again.step() == rows[2]
        learnt = weights(again.world.policy.module)
    assert not gpu.pointers and waits < 50, "two steps"
    assert all(torch.equal(x, learnt[name]) for name, x in weights(loop.world.policy.module).items())


@pytest.mark.parametrize("kind", POLICIES)
def test_a_language_policy(kind, files, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "PROBED", 4)
    method, given = POLICIES[kind]
    given = SMALL | {"eval_every": 2, "checkpoint_every": 2, "trackers": (), "quiet": True} | given
    given = {k: files.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    whole = ap.train(method, out=tmp_path / "whole", steps=4, **given)
    ap.train(method, out=tmp_path / "part", steps=2, **given)
    with PretendedDevice() as gpu:
        part = ap.resume(tmp_path / "part", steps=4, device="cuda", quiet=True)
        assert part.policy.device == GPU
        learnt, judged = weights(part.policy.module), ap.evaluate(tmp_path / "part", device="cuda")
    assert not gpu.pointers
    assert judged == ap.evaluate(tmp_path / "part", device="cpu")
    for name, x in weights(whole.policy.module).items():
        torch.testing.assert_close(learnt[name], x, **SAME)


def test_a_reward_model(files, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "pairs.jsonl").write_text(Path(files["PAIRS"]).read_text())
    whole = rewards(folder, tmp_path / "whole", "cpu")
    with PretendedDevice() as gpu:
        there = rewards(folder, tmp_path / "there", "cuda")
        assert there.model.device == GPU
        learnt, judged = weights(there.model.module), ap.evaluate(tmp_path / "there")
    assert not gpu.pointers
    assert judged == ap.evaluate(tmp_path / "whole", device="cpu")
    for name, x in weights(whole.model.module).items():
        torch.testing.assert_close(learnt[name], x, **SAME)


@pytest.mark.parametrize("slug", controllers.METHODS)
def test_a_controller(slug, tmp_path, demonstrations):  # noqa: F811
    whole = controllers.content(controllers.trained(slug, tmp_path / "whole", 64, demonstrations))
    controllers.trained(slug, tmp_path / "part", 32, demonstrations)
    with PretendedDevice():
        part = control.resume(tmp_path / "part", steps=64, device="cuda", quiet=True)
        assert device_of(part.learner) == GPU
        judged = control.evaluate_run(tmp_path / "part", device="cuda")
    assert judged == control.evaluate_run(tmp_path / "part", device="cpu")
    for kind, tensors in controllers.content(part)[1].items():
        for name, x in tensors.items():
            close(x, whole[1][kind][name])


def close(x, y):
    """Bytes of tensors that are equal, or nearly so as float32."""
    if x != y:
        pair = [torch.frombuffer(bytearray(z), dtype=torch.float32) for z in (x, y)]
        torch.testing.assert_close(*pair, **SAME)


SERL = {"hidden": (16, 16), "ensemble": 2, "batch": 8, "warmup": 10, "critic_actor_ratio": 1, "channels": (4, 4)}
DEMOS = "scripted:episodes=3"
WORLDS = {
    "agents for several tasks": ("serl", SERL, {"task": "back-and-forth:horizon=8", "demos": f"{DEMOS},worlds=2"}),
    "pictures and a learnt reward": (
        "serl",
        SERL | {"reward": "vice"},
        {"task": "tip:images=true", "demos": f"{DEMOS},images=true"},
    ),
    "standardised": (
        "rlpd",
        {"hidden": (16, 16), "batch": 8, "warmup": 10, "standardise": True},
        {"task": "reacher-sparse", "demos": DEMOS},
    ),
}


@pytest.mark.parametrize("kind", WORLDS)
def test_a_loop_of_control(kind, tmp_path):
    method, knobs, given = WORLDS[kind]
    given |= {
        "knobs": knobs,
        "quiet": True,
        "eval_every": 0,
        "eval_episodes": 1,
        "checkpoint_every": 20,
        "trackers": (),
    }
    whole = control.train_controller(method, steps=40, out=tmp_path / "whole", **given)
    control.train_controller(method, steps=20, out=tmp_path / "part", **given)
    with PretendedDevice():
        part = control.resume(tmp_path / "part", steps=40, device="cuda", quiet=True)
        learnt = {name: x.cpu() for name, x in weights_of(part.learner).items()}
    for name, x in weights_of(whole.learner).items():
        torch.testing.assert_close(learnt[name], x, **SAME)


def test_several_seeds_in_one_process():
    learnt = []
    knobs = {"hidden": (16, 16), "batch": 16, "warmup": 20}
    with PretendedDevice():
        for device in ("cpu", "cuda"):
            together = control.several("sac", task="gym/Pendulum-v1", seeds=[3, 4], knobs=knobs, device=device)
            together.run(40)
            learnt.append([{k: x.cpu() for k, x in weights_of(loop.learner).items()} for loop in together.loops])
    for one, other in zip(*learnt, strict=True):
        for name, x in one.items():
            torch.testing.assert_close(other[name], x, **SAME)


def test_a_pipeline_of_text_and_images(pipeline, images, tmp_path):  # noqa: F811
    small = {"task": f"{images}:size=16", "policy": str(pipeline), "sampler_steps": 2, "eval_samples": 2}
    whole = denoisers.trained("diffusion-dpo", tmp_path / "whole", 2, **small)
    with PretendedDevice():
        there = denoisers.trained("diffusion-dpo", tmp_path / "there", 2, device="cuda", **small)
        learnt = weights(there.model.module)
    for name, x in weights(whole.model.module).items():
        torch.testing.assert_close(learnt[name], x, **SAME)


PICTURES = [("seppo", "digits:winners=20")]


@pytest.mark.parametrize(("slug", "task"), [*((slug, "ring8:winners=20") for slug in denoisers.METHODS), *PICTURES])
def test_a_diffusion_method(slug, task, tmp_path):
    small = {"task": task, "eval_every": 2, "checkpoint_every": 2, "eval_samples": 4, "sampler_steps": 2}
    small |= {"sampler_steps": None} if task.startswith("ring8") else {}
    whole = denoisers.content(denoisers.trained(slug, tmp_path / "whole", 4, **small))
    denoisers.trained(slug, tmp_path / "part", 2, **small)
    with PretendedDevice() as gpu:
        part = diffusion.resume(tmp_path / "part", steps=4, device="cuda", quiet=True)
        assert part.model.kept.device == GPU
        diffusion.evaluate_run(tmp_path / "part", device="cuda")
    assert not gpu.pointers
    for kind, tensors in denoisers.content(part)[1].items():
        for name, x in tensors.items():
            close(x, whole[1][kind][name])


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    """Planted: operands on both sides, a generator of the processor, numpy; and what only waits is counted."""
    with PretendedDevice() as gpu:
        x, y = torch.ones(3), torch.ones(3, device="cuda")
        rng = torch.Generator().manual_seed(0)
        for wrong in (
            lambda: x + y, lambda: y[torch.tensor([0])] + x[:1], lambda: x[torch.tensor([0], device="cuda")],
            lambda: y.numpy(), lambda: torch.rand(3, device="cuda", generator=rng), lambda: y.normal_(generator=rng),
            lambda: torch.where(y > 0, x, y), lambda: x.index_add_(0, torch.tensor([0, 1, 2], device="cuda"), x),
            lambda: (y.requires_grad_() * 2).cpu().sum().backward() or y.grad + x,
        ):  # fmt: skip
            with pytest.raises(WrongDevice):
                wrong()
        assert not gpu.waits
        assert (y.detach() + torch.tensor(1.0)).device == GPU, "a number of the processor may stand beside a GPU's"
        assert y[torch.tensor([0])].device == y.cpu().to(y).device == GPU and y.cpu().device.type == "cpu"
        assert float(y.sum()) == 3 and y.tolist() and len(gpu.waits) == 2
