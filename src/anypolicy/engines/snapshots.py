"""The state of an environment as plain values, so that a resumed run goes on in the middle of an episode.

Known are MuJoCo environments, Gymnasium's classic control and toy text, and whatever has `get_state()` and
`set_state(value)` of its own, where the value is made of numbers, text, bytes, NumPy's numbers, arrays and bits, and of
lists, tuples and dictionaries of them; wrappers may have both too. For all others `snapshot` gives None and the caller
begins a new episode.
"""

from __future__ import annotations

import base64
import math
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
    if hasattr(inner, "data") and hasattr(inner, "model") and hasattr(inner.data, "qacc_warmstart"):
        core: dict[str, Any] = {"mujoco": arrays(inner.data), "time": float(inner.data.time), "values": plain(inner)}
    elif hasattr(inner, "get_state") and hasattr(inner, "set_state"):
        core = {"own": pack(inner.get_state())}
    elif type(inner).__module__.startswith(SIMPLE):
        core = {"values": plain(inner)}
    else:
        return None
    core["random"] = pack(inner.np_random.bit_generator.state) if hasattr(inner.np_random, "bit_generator") else None
    wrappers = counters(env)
    known = all(x is not None for x in [*core.values(), *(v for w in wrappers for v in w.values())])
    return core | {"wrappers": wrappers} if known else None


def put_back(env: gymnasium.Env[Any, Any], saved: dict[str, Any]) -> None:
    """Make the environment go on from a snapshot."""
    inner: Any = env.unwrapped
    inner.np_random.bit_generator.state = unpacked(saved["random"])
    for wrapper, values in zip(layers(env), saved["wrappers"], strict=True):
        for name, value in values.items():
            wrapper.set_state(unpacked(value)) if name == "own" else setattr(wrapper, name, unpacked(value))
    if "own" in saved:
        inner.set_state(unpacked(saved["own"]))
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
    """Step counts and flags of every wrapper, and what it says of itself with `get_state()`, packed."""
    return [
        {k: pack(v) for k, v in vars(w).items() if k in COUNTERS}
        | ({"own": pack(w.get_state())} if hasattr(type(w), "get_state") else {})
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
        packed = pack(value) if of_numbers(value) else None
        if packed is not None and not name.startswith(("metadata", "spec", "render", "screen", "clock", "_np_random")):
            out[name] = packed
    return out


def of_numbers(value: Any) -> bool:
    """Whether there is no text in it, which names files and modes of this process, and no dictionary."""
    if isinstance(value, tuple | list):
        return all(map(of_numbers, value))
    kind = value.dtype.kind if isinstance(value, np.generic | np.ndarray) else "f"
    return kind in "fciub" and not isinstance(value, str | bytes | dict)


def pack(value: Any) -> list[Any] | None:
    """[kind, …] in strict JSON, or None for what is made of other things."""
    if isinstance(value, np.generic | np.ndarray):
        if value.dtype.kind not in "fciubSU":
            return None
        text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return ["array" if isinstance(value, np.ndarray) else "scalar", value.dtype.str, list(value.shape), text]
    if isinstance(value, float) and not math.isfinite(value):
        return ["float", repr(value)]
    if isinstance(value, bool | int | float | str) or value is None:
        return ["value", value]
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, dict):
        pairs: Any = pack(list(value.items()))
        return None if pairs is None else ["dict", pairs]
    if isinstance(value, tuple | list):
        items = [pack(x) for x in value]
        return None if any(x is None for x in items) else ["tuple" if isinstance(value, tuple) else "list", items]
    return None


def unpacked(packed: list[Any]) -> Any:
    """The inverse of `pack`."""
    kind, *rest = packed
    if kind in ("scalar", "array"):
        array = np.frombuffer(base64.b64decode(rest[2]), rest[0]).reshape(rest[1])
        return array[()] if kind == "scalar" else array.copy()
    if kind in ("tuple", "list"):
        items = [unpacked(x) for x in rest[0]]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return dict(unpacked(rest[0]))
    if kind == "bytes":
        return base64.b64decode(rest[0])
    return float(rest[0]) if kind == "float" else rest[0]
