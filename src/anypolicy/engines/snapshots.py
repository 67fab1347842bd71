"""The state of an environment as plain values, so that a resumed run goes on in the middle of an episode.

Known are MuJoCo environments, Gymnasium's classic control and toy text, and whatever has `get_state()` and
`set_state(value)` of its own; wrappers may have both too. For all others `snapshot` gives None and the caller begins a
new episode.
"""

from __future__ import annotations

import base64
from typing import Any

import gymnasium
import numpy as np

SIMPLE = ("gymnasium.envs.classic_control", "gymnasium.envs.toy_text")
"""Modules whose environments hold their whole state in attributes of numbers and arrays."""
COUNTERS = ("_elapsed_steps", "_has_reset", "_num_steps", "step_count")
"""State that wrappers hold."""


def snapshot(env: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    """What `put_back` needs, or None."""
    inner: Any = env.unwrapped
    if hasattr(inner, "get_state") and hasattr(inner, "set_state") and not hasattr(inner, "data"):
        core: dict[str, Any] = {"own": inner.get_state()}
    elif hasattr(inner, "data") and hasattr(inner, "model") and hasattr(inner.data, "qacc_warmstart"):
        core = {"mujoco": arrays(inner.data), "time": float(inner.data.time)} | {"values": plain(inner)}
    elif type(inner).__module__.startswith(SIMPLE):
        core = {"values": plain(inner)}
    else:
        return None
    return core | {"random": inner.np_random.bit_generator.state, "wrappers": counters(env)}


def put_back(env: gymnasium.Env[Any, Any], saved: dict[str, Any]) -> None:
    """Make the environment go on from a snapshot."""
    inner: Any = env.unwrapped
    inner.np_random.bit_generator.state = saved["random"]
    for wrapper, values in zip(layers(env), saved["wrappers"], strict=True):
        for name, value in values.items():
            wrapper.set_state(value) if name == "own" else setattr(wrapper, name, value)
    if "own" in saved:
        inner.set_state(saved["own"])
    if "mujoco" in saved:
        inner.data.time = saved["time"]
        for name, text in saved["mujoco"].items():
            array = getattr(inner.data, name)
            array[...] = np.frombuffer(base64.b64decode(text), array.dtype).reshape(array.shape)
    for name, value in saved.get("values", {}).items():
        setattr(inner, name, unpacked(value))


def layers(env: gymnasium.Env[Any, Any]) -> list[Any]:
    """The wrappers, outermost first."""
    out: list[Any] = []
    while isinstance(env, gymnasium.Wrapper):
        out.append(env)
        env = env.env
    return out


def counters(env: gymnasium.Env[Any, Any]) -> list[dict[str, Any]]:
    """Step counts and flags of every wrapper, and what it says of itself with `get_state()`."""
    return [
        {k: v for k, v in vars(w).items() if k in COUNTERS}
        | ({"own": w.get_state()} if hasattr(type(w), "get_state") else {})
        for w in layers(env)
    ]


def arrays(data: Any) -> dict[str, str]:
    """Every array of MuJoCo's data whose size the model fixes: positions, velocities, warm start, and what was derived
    from them in the last substep (some environments read it before the next). Those that grow with contacts are empty
    in new data; every step computes them again."""
    new: Any = type(data)(data.model)
    out: dict[str, str] = {}
    for name in dir(data):
        value = None if name.startswith("_") else getattr(data, name, None)
        if isinstance(value, np.ndarray) and value.size and value.shape == getattr(new, name).shape:
            out[name] = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return out


def plain(inner: Any) -> dict[str, Any]:
    """Attributes that are numbers, arrays, or tuples of them."""
    out: dict[str, Any] = {}
    for name, value in vars(inner).items():
        packed = pack(value)
        if packed is not None and not name.startswith(("metadata", "spec", "render", "screen", "clock", "_np_random")):
            out[name] = packed
    return out


def pack(value: Any) -> list[Any] | None:
    """[kind, dtype, shape, values], or None for what is no number: text names files and modes of this process."""
    if isinstance(value, bool | int | float) or value is None:
        return ["value", value]
    if isinstance(value, np.generic):
        return ["scalar", value.dtype.str, value.item()]
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return ["array", value.dtype.str, list(value.shape), value.ravel().tolist()]
    if isinstance(value, tuple | list):
        items = [pack(x) for x in value]
        return None if any(x is None for x in items) else ["tuple" if isinstance(value, tuple) else "list", items]
    return None


def unpacked(packed: list[Any]) -> Any:
    """The inverse of `pack`."""
    kind, *rest = packed
    if kind == "scalar":
        return np.dtype(rest[0]).type(rest[1])
    if kind == "array":
        return np.array(rest[2], rest[0]).reshape(rest[1])
    if kind in ("tuple", "list"):
        items = [unpacked(x) for x in rest[0]]
        return tuple(items) if kind == "tuple" else items
    return rest[0]
