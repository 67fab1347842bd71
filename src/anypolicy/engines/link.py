"""Actor and learner as two processes: transitions one way, versioned weights the other, over a local socket.

A message is a length, a JSON header, a length and a safetensors body; nothing that is received is executed. The actor
never waits for the learner: a thread of its own sends what the learner has not yet seen and keeps it until that is
confirmed (at least once; rows carry numbers, so the learner stores each once). The learner never waits for the actor:
it publishes, and every actor is sent the newest weights, older ones that it has not got yet are dropped.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from anypolicy.data.transitions import Transitions, concatenate
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text

Header = dict[str, Any]
LARGEST = 1 << 30
"""Bytes of a header or body that are accepted."""
PATIENCE = 0.8
"""Seconds after which an actor's attempt to send is given up until the next."""


def config_hash(config: Mapping[str, Any]) -> str:
    """What actor and learner must have in common, as a digest."""
    return hashlib.sha256(json_text(config, exact=True, sort_keys=True, default=str).encode()).hexdigest()


def send(connection: socket.socket, header: Header, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write one message."""
    head = json_text(header).encode()
    body = save({k: v.contiguous() for k, v in tensors.items()}) if tensors else b""
    connection.sendall(struct.pack("<QQ", len(head), len(body)) + head + body)


def receive(connection: socket.socket) -> tuple[Header, dict[str, Tensor]]:
    """Read one message. Raises ConnectionError when the other side is gone."""
    head, body = struct.unpack("<QQ", exactly(connection, 16))
    if max(head, body) > LARGEST:
        raise ConnectionError("a message of this size is none of ours")
    header = json.loads(exactly(connection, head))
    return header, load(exactly(connection, body)) if body else {}


def exactly(connection: socket.socket, n: int) -> bytes:
    """n bytes."""
    out = bytearray()
    while len(out) < n:
        part = connection.recv(min(n - len(out), 1 << 20))
        if not part:
            raise ConnectionError("the other side has closed")
        out += part
    return bytes(out)


class LearnerEnd:
    """The learner's side. `received()` takes the transitions that came since, `publish(version, weights)` offers
    weights."""

    def __init__(self, config: Mapping[str, Any], port: int = 0):
        self.config, self.socket = config_hash(config), socket.create_server(("127.0.0.1", port))
        self.address: tuple[str, int] = self.socket.getsockname()[:2]
        self.waiting: deque[Transitions] = deque()
        self.last: dict[str, int] = {}
        self.acting: dict[str, int] = {}
        """Version of the weights that each actor used for the newest transition it sent."""
        self.changed, self.version, self.weights, self.closed = threading.Condition(), -1, dict[str, Tensor](), False
        threading.Thread(target=self.accept, daemon=True).start()

    def publish(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Offer weights; returns at once."""
        copy = {k: v.detach().clone() for k, v in weights.items()}
        with self.changed:
            if version <= self.version:
                raise InputError("version", version, f"weights of version {self.version} are published already")
            self.version, self.weights = version, copy
            self.changed.notify_all()

    def received(self) -> list[Transitions]:
        """What has come since the last call, oldest first."""
        with self.changed:
            out = list(self.waiting)
            self.waiting.clear()
        return out

    def wait(self, seconds: float) -> None:
        """Until something comes, or the time is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed, seconds)

    def accept(self) -> None:
        while not self.closed:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        """One connection: for data (request and answer), or for weights (pushed)."""
        try:
            with connection:
                hello, _ = receive(connection)
                if hello.get("config") != self.config:
                    send(connection, {"error": "config"})
                    return
                send(connection, {"last": self.last.get(hello["actor"], -1)})
                if hello["wants"] == "weights":
                    self.push(connection)
                while not self.closed:
                    self.store(hello["actor"], *receive(connection))
                    send(connection, {"last": self.last[hello["actor"]]})
        except (ConnectionError, OSError):
            return

    def store(self, actor: str, header: Header, tensors: dict[str, Tensor]) -> None:
        """Keep the rows that are new."""
        with self.changed:
            fresh = max(self.last.get(actor, -1) + 1 - header["first"], 0)
            rows = Transitions(*(tensors[f.name] for f in fields(Transitions)))
            rows = rows.select(torch.arange(min(fresh, len(rows)), len(rows)))
            if len(rows):
                self.waiting.append(rows)
                self.acting[actor] = header["version"]
            self.last[actor] = max(self.last.get(actor, -1), header["first"] + header["rows"] - 1)
            self.changed.notify_all()

    def push(self, connection: socket.socket) -> None:
        """The newest weights, whenever there are newer ones."""
        sent = -1
        while True:
            with self.changed:
                while self.version <= sent and not self.closed:
                    self.changed.wait()
                if self.closed:
                    return
                version, weights = self.version, self.weights
            send(connection, {"version": version}, weights)
            sent = version

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class ActorEnd:
    """The actor's side. `insert` and `update` return at once; `weights()` gives what arrived last, once."""

    def __init__(self, address: tuple[str, int], config: Mapping[str, Any], name: str = "actor", capacity: int = 2000):
        self.address, self.name, self.capacity = address, name, capacity
        self.config, self.closed, self.due = config_hash(config), False, threading.Event()
        self.rows: deque[tuple[int, int, Transitions]] = deque()
        self.lock, self.arrived = threading.Lock(), threading.Condition()
        self.fresh: tuple[int, dict[str, Tensor]] | None = None
        self.version, self.dropped = -1, 0
        with self.connect("data", timeout=30.0) as first:
            self.next = self.hello(first, "data") + 1
        for work in (self.sending, self.listening):
            threading.Thread(target=work, daemon=True).start()

    def connect(self, wants: str, timeout: float | None = PATIENCE) -> socket.socket:
        return socket.create_connection(self.address, timeout)

    def hello(self, connection: socket.socket, wants: str) -> int:
        """Introduce oneself; the number of the last row that the learner has."""
        send(connection, {"config": self.config, "actor": self.name, "wants": wants})
        answer, _ = receive(connection)
        if "error" in answer:
            raise InputError(
                "config", self.config[:12], "the learner runs with other settings: start both with the same"
            )
        return int(answer["last"])

    def insert(self, rows: Transitions) -> None:
        """Keep rows for the learner; the oldest are dropped (and counted) beyond the capacity."""
        with self.lock:
            for i in range(len(rows)):
                self.rows.append((self.next, self.version, rows.select(torch.tensor([i]))))
                self.next += 1
            while len(self.rows) > self.capacity:
                self.rows.popleft()
                self.dropped += 1

    def update(self) -> None:
        """Let the thread send what the learner does not have."""
        self.due.set()

    def weights(self) -> dict[str, Tensor] | None:
        """Newer weights, if some came."""
        with self.arrived:
            fresh, self.fresh = self.fresh, None
            if fresh is None:
                return None
            self.version = fresh[0]
            return fresh[1]

    def wait_for_weights(self, seconds: float) -> bool:
        """Before the first action: whether some came in time."""
        with self.arrived:
            return self.arrived.wait_for(lambda: self.fresh is not None, seconds)

    def sending(self) -> None:
        """Connect, learn what is there, send the rest; what fails is tried again at the next `update`."""
        while not self.closed:
            self.due.wait()
            self.due.clear()
            try:
                with self.connect("data") as connection:
                    last = self.hello(connection, "data")
                    while batch := self.newer(last):
                        rows = concatenate([r for _, _, r in batch])
                        tensors = {f.name: getattr(rows, f.name) for f in fields(Transitions)}
                        header = {"first": batch[0][0], "rows": len(batch), "version": batch[-1][1]}
                        send(connection, header, tensors)
                        last = int(receive(connection)[0]["last"])
                        self.confirm(last)
            except OSError:
                continue

    def newer(self, last: int) -> list[tuple[int, int, Transitions]]:
        """A run of rows behind `last`, without gaps."""
        with self.lock:
            return [r for r in self.rows if r[0] > last][:500]

    def confirm(self, last: int) -> None:
        """Forget what the learner has."""
        with self.lock:
            while self.rows and self.rows[0][0] <= last:
                self.rows.popleft()

    def unsent(self) -> int:
        """Rows that the learner has not confirmed."""
        with self.lock:
            return len(self.rows)

    def listening(self) -> None:
        """Take weights as they come; a lost connection is made again."""
        while not self.closed:
            try:
                with self.connect("weights") as connection:
                    self.hello(connection, "weights")
                    connection.settimeout(None)
                    while not self.closed:
                        header, tensors = receive(connection)
                        with self.arrived:
                            self.fresh = (int(header["version"]), tensors)
                            self.arrived.notify_all()
            except OSError:
                self.due.wait(PATIENCE)

    def close(self) -> None:
        self.closed = True
        self.due.set()
