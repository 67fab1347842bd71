"""Actor and learner as two processes: transitions one way, versioned weights the other, over a local socket.

The actor never waits for the learner: a thread of its own sends what the learner has not yet seen and keeps it until
that is confirmed (at least once; rows carry numbers, so the learner stores each once). The learner never waits for the
actor: it publishes, and every actor is sent the newest weights, older ones that it has not got yet are dropped.

The learner takes no row on trust: what is not of its space, or no number, is refused at the door, and the actor that
sent it ends. Only rows that it has kept are confirmed.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anypolicy.data.transitions import Transitions, concatenate, width
from anypolicy.engines.wire import Header, introduce, make_secret, receive, secret_of, send, welcome
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text

PATIENCE = 0.8
"""Seconds after which an actor's attempt to send is given up until the next."""
BEGINNING = 30.0
"""Seconds within which a learner must answer an actor for the first time."""
CONNECTIONS = 32
"""How many the learner has at once, those that have not introduced themselves included."""
SILENCE = 60.0
"""Seconds after which the learner closes a connection that gives nothing, or takes nothing."""
ROWS, WAITING = 500, 100_000
"""Most transitions of one message, and most that wait for the learner."""


def config_hash(config: Mapping[str, Any]) -> str:
    """What actor and learner must have in common, as a digest."""
    return hashlib.sha256(json_text(config, exact=True, sort_keys=True, default=str).encode()).hexdigest()


def checked(header: Header, tensors: Mapping[str, Tensor], observations: int, actions: int) -> Transitions:
    """The transitions of a message: finite float32 of these widths, flags 0 or 1, as many as its header says."""
    first, version, n = (header.get(k) for k in ("first", "version", "rows"))
    if type(first) is not int or type(version) is not int or type(n) is not int or first < 0 or not 1 <= n <= ROWS:
        raise InputError("rows", n, f"a message has `first`, `version` and `rows`, at most {ROWS}")
    shapes = {f.name: (n,) for f in fields(Transitions)}
    shapes |= {"observation": (n, observations), "next_observation": (n, observations), "action": (n, actions)}
    if tensors.keys() != shapes.keys():
        raise InputError("rows", sorted(tensors), f"transitions have {', '.join(shapes)}")
    for name, shape in shapes.items():
        x = tensors[name]
        if tuple(x.shape) != shape or x.dtype != torch.float32:
            raise InputError(name, f"{x.dtype} {tuple(x.shape)}", f"this learner takes float32 of {shape}")
        if not x.isfinite().all():
            raise InputError(name, "NaN or infinite", "the environment must give finite numbers: mend or clip them")
    for name in ("terminated", "truncated"):
        if not ((tensors[name] == 0) | (tensors[name] == 1)).all():
            raise InputError(name, tensors[name].unique().tolist(), "it is 0 or 1")
    return Transitions(*(tensors[name] for name in shapes))


class LearnerEnd:
    """The learner's side. `received()` takes the transitions that came since, `publish(version, weights)` offers
    weights. Observations and actions of a transition have `widths`. `secret` is a file, made here if it is not there;
    without one it is a new file until `close`."""

    def __init__(
        self, config: Mapping[str, Any], widths: tuple[int, int], port: int = 0, secret: Path | None = None
    ):  # fmt: skip
        self.own = None if secret else Path(tempfile.mkdtemp(prefix="anypolicy-"))
        self.secret = secret or Path(self.own or "") / "secret"
        if not self.secret.exists():
            make_secret(self.secret)
        self.known, self.widths = secret_of(self.secret), widths
        self.room = threading.BoundedSemaphore(CONNECTIONS)
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
                time.sleep(0.05)
                continue
            if self.room.acquire(blocking=False):
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()
            else:
                connection.close()

    def serve(self, connection: socket.socket) -> None:
        """One connection, from its greeting to its end."""
        try:
            with connection:
                greeted = welcome(connection, self.known)
                if greeted is None:
                    send(connection, {"error": "secret"})
                    return
                connection.settimeout(SILENCE)
                self.talk(connection, *greeted)
        except OSError:
            return
        finally:
            self.room.release()

    def talk(self, connection: socket.socket, hello: Header, answer: Header) -> None:
        """With an actor that knows the secret: for data (request and answer), or for weights (pushed)."""
        actor = str(hello.get("actor"))
        if hello.get("config") != self.config:
            send(connection, answer | {"error": "config"})
            return
        send(connection, answer | {"last": self.last.get(actor, -1)})
        if hello.get("wants") == "weights":
            self.push(connection)
        most = 4 * ROWS * width(*self.widths) + (1 << 16)
        while not self.closed:
            header, tensors = receive(connection, most)
            try:
                last = self.store(actor, header, tensors)
            except InputError as error:
                send(connection, {"error": str(error)[:1000]})
                return
            send(connection, {"last": last})

    def store(self, actor: str, header: Header, tensors: dict[str, Tensor]) -> int:
        """Keep the rows that are new, if there is room; the number of the last one that is kept."""
        rows, first = checked(header, tensors, *self.widths), int(header["first"])
        with self.changed:
            seen = self.last.get(actor, -1)
            rows = rows.select(torch.arange(min(max(seen + 1 - first, 0), len(rows)), len(rows)))
            if len(rows) and sum(map(len, self.waiting)) + len(rows) <= WAITING:
                self.waiting.append(rows)
                self.acting[actor], self.last[actor] = header["version"], first + header["rows"] - 1
                self.changed.notify_all()
            return self.last.get(actor, -1)

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
        if self.own is not None:
            shutil.rmtree(self.own, ignore_errors=True)


class ActorEnd:
    """The actor's side. `insert` and `update` return at once; `weights()` gives what arrived last, once. `secret` is
    the learner's file. What the learner refuses is raised by the next `insert`."""

    def __init__(
        self, address: tuple[str, int], config: Mapping[str, Any], secret: Path, name: str = "actor",
        capacity: int = 2000,
    ):  # fmt: skip
        self.address, self.secret, self.name, self.capacity = address, secret, name, capacity
        self.refused: InputError | None = None
        self.config, self.closed, self.due = config_hash(config), False, threading.Event()
        self.rows: deque[tuple[int, int, Transitions]] = deque()
        self.lock, self.arrived = threading.Lock(), threading.Condition()
        self.fresh: tuple[int, dict[str, Tensor]] | None = None
        self.version, self.dropped = -1, 0
        self.next = self.begin() + 1
        for work in (self.sending, self.listening):
            threading.Thread(target=work, daemon=True).start()

    def begin(self) -> int:
        """The number of the last row that the learner has, once it answers: it may be busy, or have no room for another
        connection now."""
        until = time.monotonic() + BEGINNING
        while True:
            try:
                with self.connect("data", timeout=BEGINNING) as first:
                    return self.hello(first, "data")
            except OSError as error:
                if time.monotonic() > until:
                    where = ":".join(map(str, self.address))
                    raise InputError("address", where, f"no learner answers here ({error})") from error
                time.sleep(0.1)

    def connect(self, wants: str, timeout: float | None = PATIENCE) -> socket.socket:
        return socket.create_connection(self.address, timeout)

    def hello(self, connection: socket.socket, wants: str) -> int:
        """Introduce oneself; the number of the last row that the learner has."""
        said = {"config": self.config, "actor": self.name, "wants": wants}
        answer = introduce(connection, self.secret, said)
        if "error" in answer:
            raise InputError(
                "config", self.config[:12], "the learner runs with other settings: start both with the same"
            )
        return int(answer["last"])

    def insert(self, rows: Transitions) -> None:
        """Keep rows for the learner; the oldest are dropped (and counted) beyond the capacity."""
        if self.refused is not None:
            raise self.refused
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
            came = self.arrived.wait_for(lambda: self.fresh is not None or self.refused is not None, seconds)
        if self.refused is not None:
            raise self.refused
        return came

    def sending(self) -> None:
        """Connect, learn what is there, send the rest; what fails is tried again at the next `update`."""
        while not self.closed:
            self.due.wait()
            self.due.clear()
            try:
                with self.connect("data") as connection:
                    last, before = self.hello(connection, "data"), -2
                    while last != before and (batch := self.newer(last)):
                        rows = concatenate([r for _, _, r in batch])
                        tensors = {f.name: getattr(rows, f.name) for f in fields(Transitions)}
                        header = {"first": batch[0][0], "rows": len(batch), "version": batch[-1][1]}
                        send(connection, header, tensors)
                        answer, _ = receive(connection, 0)
                        if "error" in answer:
                            raise InputError("transitions", f"from {batch[0][0]} on", f"refused: {answer['error']}")
                        before, last = last, int(answer["last"])
                        self.confirm(last)
            except OSError:
                continue
            except InputError as error:
                self.refuse(error)
                return

    def refuse(self, error: InputError) -> None:
        """Let the next `insert`, or who waits for weights, end with this."""
        with self.arrived:
            self.refused = error
            self.arrived.notify_all()

    def newer(self, last: int) -> list[tuple[int, int, Transitions]]:
        """A run of rows behind `last`, without gaps."""
        with self.lock:
            return [r for r in self.rows if r[0] > last][:ROWS]

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
            except InputError as error:
                self.refuse(error)
                return

    def close(self) -> None:
        self.closed = True
        self.due.set()
