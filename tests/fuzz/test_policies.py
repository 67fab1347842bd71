"""Names and folders of policies, reward models, controllers and diffusion models."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from anypolicy.data.records import Prompt
from anypolicy.families.control import ControlSettings, learner_for, load_controller, plan, save_controller
from anypolicy.methods.control.bc import saved_policy
from anypolicy.methods.exact.lipschitz_certificate import trained
from anypolicy.policies.diffusion.denoisers import PointDiffusion
from anypolicy.policies.diffusion.image_models import UNetModel, load_model
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.load import load_policy
from anypolicy.policies.language.picture_reader import PictureReader, Sizes
from anypolicy.policies.language.reward_model import RewardModel
from anypolicy.policies.language.table import TablePolicy
from anypolicy.tasks.control.environments import load_environment
from tests.fuzz.harness import (
    allowed,
    broken,
    broken_safetensors,
    cases,
    edited,
    found,
    safetensors_of,
    safetensors_parts,
)

TINY = "layers=1,width=8,heads=2,context=32"


@functools.cache
def models() -> dict[str, dict[str, bytes]]:
    """The files of one small saved model of every kind."""

    def points(folder: Path) -> None:
        PointDiffusion(0, classes=2, dimensions=2, hidden=(4,), steps=3).save(folder)

    def controller(method: str, task: str, **knobs: Any) -> Callable[[Path], None]:
        p = plan(method, ControlSettings(task, demos=None if method == "dqn" else "x"), knobs)
        return lambda folder: save_controller(folder, p, learner_for(p))

    causal = load_policy(f"transformer:{TINY}")
    assert isinstance(causal, CausalLM)
    saves: dict[str, Callable[[Path], None]] = {
        "table": TablePolicy(torch.zeros(2, 2, 3)).save,
        "reader": PictureReader(Sizes(2, 2, 3, 2, width=8, heads=2), 0).save,
        "transformer": causal.save,
        "masked": load_policy(f"masked-diffusion:{TINY}").save,
        "vision": load_policy(f"vlm:{TINY.replace('32', '64')},image=8,patch=4").save,
        "reward": RewardModel.from_policy(causal, 0).save,
        "controller": controller("dqn", "gym/CartPole-v1", hidden=(4,)),
        "cloned": controller("bc", "gym/Pendulum-v1", hidden=(4,)),
        "lipschitz": controller("lipschitz-bc", "gym/Pendulum-v1"),
        "points": points,
        "unet": UNetModel.fresh(0, size=8, channels=1, classes=2, widths=(8, 8)).save,
    }
    found: dict[str, dict[str, bytes]] = {}
    for kind, save in saves.items():
        with tempfile.TemporaryDirectory() as work:
            save(Path(work))
            files = sorted(f for f in Path(work).rglob("*") if f.is_file())
            found[kind] = {str(f.relative_to(work)): f.read_bytes() for f in files}
    return found


@st.composite
def changed_models(draw: st.DrawFn) -> tuple[str, dict[str, bytes | None]]:
    """A kind of model, and one or two of its files changed (None: gone)."""
    kind = draw(st.sampled_from(sorted(LOADERS)))
    files, changed = models()[kind], dict[str, bytes | None]()
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(files)))
        how = draw(st.sampled_from(("edited", "edited", "edited", "broken", "gone")))
        if how == "gone":
            changed[name] = None
        elif how == "edited" and name.endswith(".json"):
            changed[name] = json.dumps(draw(edited(json.loads(files[name])))).encode()
        elif how == "edited" and name.endswith(".safetensors"):
            changed[name] = draw(broken_safetensors(files[name]))
        else:
            changed[name] = draw(broken(files[name]))
    return kind, changed


def used(folder: str) -> None:
    """A policy is loaded and reads a prompt."""
    policy = load_policy(folder)
    if isinstance(policy, TablePolicy):
        policy.prefill([np.zeros(1, np.int64)])
    elif not isinstance(policy, PictureReader):
        policy.encode(Prompt("p", ({"role": "user", "content": "a"},)))


LOADERS = {
    "table": used, "reader": used, "transformer": used, "masked": used, "vision": used, "reward": RewardModel.load,
    "controller": load_controller, "points": load_model, "unet": load_model, "lipschitz": trained,
    "cloned": lambda folder: saved_policy(folder, load_environment("gym/Pendulum-v1").space),
}  # fmt: skip


def nans(data: bytes) -> bytes:
    """The same tensors, every number NaN."""
    header, body = safetensors_parts(data)
    return safetensors_of(header, b"\xff" * len(body))


def with_values(**values: Any) -> Callable[[bytes], bytes]:
    """A JSON object with other values."""
    return lambda data: json.dumps(json.loads(data) | values).encode()


CONFIGS = (b"x", b"\xff", b"null", b"[]", b"{}", None)
KEPT: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"config.json": config}) for kind in ("table", "reader", "controller", "cloned", "lipschitz", "points", "transformer", "masked", "reward") for config in CONFIGS),
    ("table", {"table.safetensors": b""}), ("table", {"table.safetensors": safetensors_of({}, b"")}),
    *(("table", {"table.safetensors": safetensors_of({"logits": {"dtype": d, "shape": x, "data_offsets": [0, 8]}}, bytes(8))}) for d, x in (("F32", [2]), ("I64", [1, 1, 1]), ("C64", [1, 1, 1]), ("F32", [1, 2, 1]))),
    *(("reader", {"config.json": with_values(**v)}) for v in ({"width": "x"}, {"width": 0}, {"heads": 0}, {"heads": 3}, {"layers": 10**9}, {"rows": 2**31}, {"vocabulary": 1.5}, {"x": 1})),
    ("reader", {"picture_reader.safetensors": b""}),
    *(("points", {"config.json": with_values(**v)}) for v in ({"hidden": 3}, {"hidden": []}, {"hidden": [0]}, {"steps": "x"}, {"steps": -1}, {"steps": 10**23}, {"low": None}, {"classes": 2**31}, {"x": 1})),
    ("points", {"model.safetensors": None}), ("points", {"model.safetensors": b""}),
    *(("unet", {name: None}) for name in ("unet/config.json", "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors")),
    ("unet", {"unet/config.json": with_values(act_fn=3)}), ("unet", {"scheduler/scheduler_config.json": b"x"}), ("unet", {"config.json": with_values(steps=None)}),
    *((kind, {"config.json": with_values(**v)}) for kind in ("controller", "cloned") for v in ({"knobs": 3}, {"knobs": {"ª": 1}}, {"method": []}, {"task": 1.5}, {"knobs": {"hidden": 3}})),
    *((kind, {"controller.safetensors": b""}) for kind in ("controller", "cloned", "lipschitz")),
    *((kind, {"model.safetensors": nans}) for kind in ("transformer", "masked", "vision", "reward")),
    ("transformer", {"config.json": with_values(n_head=0)}), ("transformer", {"config.json": with_values(n_embd=0)}), ("reward", {"config.json": with_values(n_positions=-2e16)}),
    ("reward", {"reward.json": b"x"}), ("reward", {"reward.json": b"{}"}), ("reward", {"reward.json": b'{"mean": "a", "std": 0}'}),
    ("masked", {"tokenizer_config.json": b"["}), ("masked", {"tokenizer_config.json": with_values(unk_token=1.5)}),
]  # fmt: skip
"""Models that once gave a traceback, as the files that were other ones."""


@found(*KEPT)
@given(changed_models())
@cases(200)
def test_folders_of_models(place, data):
    kind, changed = data
    copy = place / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    for name, own in (models()[kind] | changed).items():
        if callable(own):
            own = own(models()[kind][name])
        if own is not None:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(own)
    allowed(LOADERS[kind], str(copy))


WORDS = ("", "transformer", "transformer:", "masked-diffusion", "masked-diffusion:", "vlm", "vlm:", "smollm2-1", ".", "/", "..", "a/b", "a/b/c", "x.gguf", "~",
         "\0", "a" * 5000, "a/" + "b" * 300, "hf://x", "C:\\x", "transformer:layers", "masked-diffusion:x/y,own-code=false")  # fmt: skip
NUMBERS = (
    "1",
    "2",
    "8",
    "0",
    "-1",
    "1.5",
    "x",
    "",
    "²",
    "1e3",
    "true",
    "null",
    "[1]",
    "99999999999999999999999",
    "9" * 5000,
    "!!python/none",
    "0x8",
    "&a 1",
    "*a",
    "4294967296",
)
KEYS = ("layers", "width", "heads", "context", "image", "patch", "x", "", " layers")
scratch = st.builds(
    lambda kind, pairs: f"{kind}:" + ",".join(f"{k}={v}" for k, v in pairs),
    st.sampled_from(("transformer", "masked-diffusion", "vlm")),
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(NUMBERS)), min_size=1, max_size=5),
)


@given(st.sampled_from(WORDS) | scratch | st.text(max_size=12), st.sampled_from((0, 0, 0, 1, 4)))
@found(rank=0, spec="transformer:layers=!!python/none")
@found(rank=0, spec="transformer:context=1")
@found(rank=0, spec="a" * 5000)
@found(rank=0, spec="transformer:width=" + "9" * 23)
@found(rank=0, spec="vlm:image=99999999,patch=1")
@cases(150)
def test_names_of_policies(spec, rank):
    allowed(load_policy, spec, lora_rank=rank)


@given(
    st.sampled_from(WORDS) | st.text(max_size=12),
    st.sampled_from((load_model, load_controller, RewardModel.load, trained)),
)
@found(spec="a" * 5000, load=load_model)
@found(spec="a" * 5000, load=load_controller)
@cases(60)
def test_names_of_other_models(spec, load):
    allowed(load, spec)


def a_gguf() -> bytes:
    """The beginning of a GGUF file: magic, version 3, one tensor, one key."""
    return (
        b"GGUF"
        + (3).to_bytes(4, "little")
        + (1).to_bytes(8, "little")
        + (1).to_bytes(8, "little")
        + (20).to_bytes(8, "little")
        + b"general.architecture"
        + (8).to_bytes(4, "little")
        + (5).to_bytes(8, "little")
        + b"llama"
        + bytes(64)
    )


@given(st.binary(max_size=64) | broken(a_gguf()))
@found(b"", a_gguf(), a_gguf()[:8] + (2**40).to_bytes(8, "little") + a_gguf()[16:], a_gguf()[:8] + bytes(16))
@cases(40)
def test_gguf_files(place, data):
    (place / "x.gguf").write_bytes(data)
    allowed(load_policy, str(place / "x.gguf"))
