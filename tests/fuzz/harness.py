"""What every fuzz test shares: how many cases, the one judgement, and how valid input is made invalid.

`make test` draws a few cases of every target, always the same ones. `make fuzz CASES=10000` draws that many new ones in all
and prints how to repeat a case that fails. A case that once failed stays in its test as an `@example`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, example, settings
from hypothesis import strategies as st

from anypolicy.errors import InputError

CASES = int(os.environ.get("FUZZ_CASES", "0"))
FEW, ALL = 750, 6000
SECONDS, MEMORY = 30, 4 << 30
"""What one call may take: longer is hanging, and more than this beyond what the process has is a bomb. The seconds are
those of the processor, since others may have it (ten times as many may pass)."""


def cases(n: int) -> settings:
    """A target's share, `n` of `ALL`: of `FEW` cases in `make test`, the same in every run; of new ones in `make fuzz`."""
    return settings(
        max_examples=max(n * (CASES or FEW) // ALL, 5), derandomize=not CASES, database=None, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def found(*values: Any, **named: Any) -> Callable[[Any], Any]:
    """Cases that failed once: of the argument `data`, or of several arguments by name."""

    def keep(test: Any) -> Any:
        for value in values:
            test = example(data=value)(test)
        return example(**named)(test) if named else test

    return keep


# --- the judgement ---------------------------------------------------------------------------------------------------
class Hung(BaseException):
    """The call took too long. No `except Exception` on its way catches it."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Time and memory are limited inside."""

    def stop(*_: object) -> None:
        raise Hung

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, 10 * SECONDS)}
    before = {number: signal.signal(number, stop) for number in timers}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)


def allowed(call: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What the call gives, or None where it refuses by one InputError. All else fails: other exceptions, the end of the
    process, too much memory, hanging."""
    try:
        with bounded(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return call(*given, **named)
    except InputError as error:
        if not 0 < len(str(error)) < 5000:
            raise AssertionError("the message is empty or without end") from error
        return None
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AssertionError(f"the call ended by {type(error).__name__}: {error}") from error


# --- odd values ------------------------------------------------------------------------------------------------------
HUGE = (10**23 - 1, 2**63, -(2**63) - 1, 2**31, 10**400)
"""Whole numbers that some C type does not hold. Sizes that are merely large cost what they cost."""
TEXTS = (
    "",
    " ",
    "16",
    "nan",
    "-inf",
    "1e999",
    "²",
    "é",
    "\ud800",
    "\0",
    "a" * 3000,
    "null",
    "[]",
    "../..",
    "a/b",
    ":",
    "=",
    "%s",
    "{}",
)
nested: Any = [[]]
for _ in range(60):
    nested = [nested]
PLAIN = (None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e308, float("nan"), float("inf"), *HUGE, *TEXTS, [], {}, [[]], [1, "a", None],
         {"a": 1}, {"": {}}, nested)  # fmt: skip
plain = st.sampled_from(PLAIN).map(copy.deepcopy) | st.integers(-3, 5) | st.floats() | st.text(max_size=8)
"""Values that JSON can say (as Python writes it)."""
OBJECTS = (
    b"x",
    object(),
    int,
    Path("nothing-there"),
    (),
    (1, 2),
    ("a",),
    {1},
    1j,
    np.float32(2),
    np.int64(2),
    np.zeros(2),
    len,
    range(3),
)
odd = plain | st.sampled_from(OBJECTS)
"""Values that only Python can say, too."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a plain one."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


@st.composite
def edited(draw: st.DrawFn, value: Any, values: st.SearchStrategy[Any] = plain) -> Any:
    """A plain value with one to three parts replaced, removed, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(values)
            if isinstance(value, dict):
                value[draw(st.text(max_size=5))] = draw(values)
            continue
        *before, key = path
        owner = value
        for k in before:
            owner = owner[k]
        how = draw(st.sampled_from(("replace", "replace", "remove", "rename", "double")))
        if how == "replace":
            owner[key] = draw(values)
        elif how == "remove":
            del owner[key]
        elif isinstance(owner, dict):
            owner[draw(st.text(max_size=5))] = owner.pop(key) if how == "rename" else owner[key]
        else:
            owner.append(owner[key])
    return value


@st.composite
def broken(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with one to four places overwritten, cut out, doubled or filled in, or cut short."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(out) - 1, 0)))
        n = draw(st.sampled_from((1, 1, 2, 4, 8, 40)))
        how = draw(st.sampled_from(("flip", "set", "cut", "double", "insert", "number", "end")))
        if how == "flip" and out:
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set":
            out[at : at + n] = draw(st.sampled_from((b"\0", b"\xff", b"\x80", b"9", b'"', b"\n"))) * n
        elif how == "cut":
            del out[at : at + n]
        elif how == "double":
            out[at:at] = out[at : at + n]
        elif how == "insert":
            out[at:at] = draw(st.binary(max_size=8))
        elif how == "number":
            out[at : at + 8] = draw(st.sampled_from((2**63 - 1, 2**40, 2**31, 0))).to_bytes(8, "little")
        else:
            del out[at:]
    return bytes(out)


def lines(rows: list[Any]) -> bytes:
    """JSON lines; what JSON cannot say is written as Python writes it."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@st.composite
def broken_lines(draw: st.DrawFn, rows: list[Any]) -> bytes:
    """JSON lines of which one is edited, or whose bytes are broken, or both."""
    rows = copy.deepcopy(rows)
    if draw(st.integers(0, 3)):
        i = draw(st.integers(0, len(rows) - 1))
        rows[i] = draw(edited(rows[i]))
    data = lines(rows)
    return data if draw(st.integers(0, 3)) else draw(broken(data))


# --- binary formats --------------------------------------------------------------------------------------------------
def npy(header: Any, body: bytes, version: bytes = b"\x01\x00") -> bytes:
    """An .npy file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else repr(header).encode("utf-8", "replace")
    text += b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little") + text + body


HEADERS = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(("<f4", "<f8", "|u1", "<i8", "|O", "|S3", "<U2", "<c16", "|b1", ">f4", "|V4", "M8[s]", "<f2", "x", "")),
        "fortran_order": st.sampled_from((False, False, False, True, 3, None)),
        "shape": st.lists(st.sampled_from((0, 1, 2, 3, 4, -1, 2**40, 2**62, 10**23, True, 1.5)), max_size=4).map(tuple) | plain,
    }
)  # fmt: skip
npys = st.builds(npy, HEADERS | edited({"descr": "<f4", "fortran_order": False, "shape": [2, 3]}), st.binary(max_size=64),
                 st.sampled_from((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09")))  # fmt: skip
""".npy files whose header is well written and says anything."""


def npz(members: dict[str, bytes]) -> bytes:
    """A .npz file of these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def npy_of(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(array), allow_pickle=True)
    return out.getvalue()


@st.composite
def npzs(draw: st.DrawFn, arrays: dict[str, Any]) -> bytes:
    """A .npz file of which some arrays are other ones, claimed, missing or new, or whose bytes are broken."""
    members = {f"{name}.npy": npy_of(array) for name, array in arrays.items()}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*sorted(members), "x.npy", "x", "a/b.npy"]))
        how = draw(st.sampled_from(("other", "claimed", "broken", "without")))
        if how == "without":
            members.pop(name, None)
        elif how == "claimed":
            members[name] = draw(npys)
        elif how == "broken" and name in members:
            members[name] = draw(broken(members[name]))
        else:
            shape = draw(st.lists(st.integers(0, 4), max_size=4))
            kind = draw(
                st.sampled_from(
                    (
                        "float64",
                        "float32",
                        "int64",
                        "uint64",
                        "bool",
                        "complex64",
                        "S3",
                        "U2",
                        "object",
                        "float16",
                        "M8[s]",
                    )
                )
            )
            members[name] = npy_of(np.zeros(shape, kind))
    data = npz(members)
    return data if draw(st.integers(0, 2)) else draw(broken(data))


def safetensors_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers behind it."""
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def safetensors_of(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@st.composite
def broken_safetensors(draw: st.DrawFn, data: bytes) -> bytes:
    """A .safetensors file with an edited header, with tensors of another type or shape, or with broken bytes."""
    how = draw(st.sampled_from(("header", "kind", "kind", "without", "without", "bytes", "text", "numbers")))
    header, body = safetensors_parts(data)
    names = [k for k in header if k != "__metadata__"]
    if how == "header":
        return safetensors_of(draw(edited(header)), body)
    if how == "kind" and names:
        one = header[draw(st.sampled_from(names))]
        one["dtype"] = draw(
            st.sampled_from(
                (
                    "F32",
                    "I32",
                    "U32",
                    "F64",
                    "I64",
                    "U64",
                    "C64",
                    "BF16",
                    "F16",
                    "U8",
                    "BOOL",
                    "F8_E4M3",
                    "F8_E5M2",
                    "F4",
                    "E8M0",
                    "U16",
                )
            )
        )
        size = one["data_offsets"][1] - one["data_offsets"][0]
        one["shape"] = draw(
            st.sampled_from(
                (
                    [size // 4],
                    [size // 8],
                    [size // 2],
                    [size],
                    [size // 4, 1],
                    [1, size // 4],
                    [1, 1, size // 4],
                    [2, size // 8],
                    one["shape"],
                )
            )
        )
        return safetensors_of(header, body)
    if how == "without" and names:
        from safetensors.torch import load, save

        kept = load(data)
        kept.pop(draw(st.sampled_from(names)))
        return save(kept)
    if how == "text":
        return safetensors_of(draw(broken(json.dumps(header).encode())), body)
    if how == "numbers":
        return safetensors_of(header, bytes(draw(st.sampled_from((b"\xff", b"\x7f", b"\x80", b"\x01"))) * len(body)))
    return draw(broken(data))
