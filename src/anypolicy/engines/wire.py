"""Messages between actor and learner, and how the two know each other.

A message is two lengths, a JSON header and a safetensors body; nothing that is received is executed. Both sides read
one secret from a file that its owner alone can read, and prove that they know it without sending it. Until an actor
has, it may send one small header within a few seconds, and nothing else.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text

Header = dict[str, Any]
NONCE = 32
"""Bytes that each side draws anew for a connection."""
HEADER, LARGEST = 4096, 1 << 30
"""Bytes of a header, and of a body from a side that has proved itself, that are accepted."""
GREETING = 5.0
"""Seconds within which a connection must have introduced itself."""


def send(connection: socket.socket, header: Header, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write one message."""
    head = json_text(header).encode()
    body = save({k: v.contiguous() for k, v in tensors.items()}) if tensors else b""
    connection.sendall(struct.pack("<QQ", len(head), len(body)) + head + body)


def receive(
    connection: socket.socket, most: int = LARGEST, seconds: float | None = None
) -> tuple[Header, dict[str, Tensor]]:
    """Read one message with a body of `most` bytes, within `seconds`. Raises ConnectionError for anything else."""
    until = None if seconds is None else time.monotonic() + seconds
    head, body = struct.unpack("<QQ", exactly(connection, 16, until))
    if head > HEADER or body > most:
        raise ConnectionError("a message of this size is none of ours")
    try:
        header = json.loads(exactly(connection, head, until))
        tensors = load(exactly(connection, body, until)) if body else {}
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ConnectionError(f"it is no message of ours: {error}") from error
    if not isinstance(header, dict):
        raise ConnectionError("its header is no object")
    return header, tensors


def exactly(connection: socket.socket, n: int, until: float | None = None) -> bytes:
    """n bytes, before a time of the monotonic clock."""
    out = bytearray()
    while len(out) < n:
        if until is not None:
            if (left := until - time.monotonic()) <= 0:
                raise ConnectionError("it took too long")
            connection.settimeout(left)
        part = connection.recv(min(n - len(out), 1 << 20))
        if not part:
            raise ConnectionError("the other side has closed")
        out += part
    return bytes(out)


# --- the secret ------------------------------------------------------------------------------------------------------
def make_secret(path: Path) -> None:
    """A new secret in a file that only its owner can read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def secret_of(path: Path) -> bytes:
    """The secret in a file. One that others may read or write is none."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            secret = file.read(256)
    except OSError as error:
        raise InputError("secret", str(path), f"it cannot be read ({error.strerror})") from error
    if facts.st_mode & 0o077 or facts.st_uid != os.getuid():
        raise InputError("secret", str(path), "it must belong to you and be readable by you alone: chmod 600")
    if len(secret) < 32:
        raise InputError("secret", str(path), "it is too short: use 32 bytes or more")
    return secret


def proof(secret: bytes, role: str, learner: str, actor: str) -> str:
    """What only who knows the secret can say about the nonces of a connection."""
    return hmac.new(secret, f"{role} {learner} {actor}".encode(errors="replace"), "sha256").hexdigest()


def equal(expected: str, given: object) -> bool:
    """Whether a proof is right, in a time that does not tell how much of it is."""
    return hmac.compare_digest(expected.encode(), str(given).encode(errors="replace"))


def welcome(connection: socket.socket, secret: bytes) -> tuple[Header, Header] | None:
    """The learner's part: the greeting of an actor that knows the secret, and what the answer must hold; None if it
    does not know it."""
    mine = secrets.token_bytes(NONCE)
    connection.settimeout(GREETING)
    connection.sendall(mine)
    hello, _ = receive(connection, 0, GREETING)
    nonces = mine.hex(), str(hello.get("nonce"))
    if not equal(proof(secret, "actor", *nonces), hello.get("proof")):
        return None
    return hello, {"proof": proof(secret, "learner", *nonces)}


def introduce(connection: socket.socket, file: Path, said: Header) -> Header:
    """The actor's part: greet, and give back the answer of a learner that knows the secret in the file."""
    theirs, mine, secret = exactly(connection, NONCE).hex(), secrets.token_bytes(NONCE).hex(), secret_of(file)
    send(connection, {**said, "nonce": mine, "proof": proof(secret, "actor", theirs, mine)})
    answer, _ = receive(connection, 0)
    expected = proof(secret, "learner", theirs, mine)
    if not equal(expected, answer.get("proof")):
        raise InputError("secret", str(file), "the learner at this address has another: give both the same file")
    return answer
