"""What all benchmarks share: workers in other environments, blocks in turn, ratios with intervals, result files."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from anypolicy.runs.strict_json import json_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"


class Worker:
    """A process that answers one JSON line with one JSON line."""

    def __init__(
        self, python: Path, script: Path, settings: dict[str, Any], environment: dict[str, str] | None = None
    ):  # fmt: skip
        self.process = subprocess.Popen(
            [str(python), str(script), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command, wait for its answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the worker ended at {command!r} with code {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def peer_python(name: str, packages: list[str]) -> Path:
    """The Python of the peer's own virtual environment, made on first use."""
    home = HERE / ".venvs" / name
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        print(f"making the environment of {name} (once)")
        subprocess.run(["python3", "-m", "venv", str(home)], check=True)
        for package in packages:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        (home / ".ready").touch()
    return python


def in_turn(sides: dict[str, Worker], command: str, blocks: int) -> dict[str, list[dict[str, float]]]:
    """The answers of both sides to `blocks` commands each, in the order A B B A …, after one that is not counted."""
    names = list(sides)
    costs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in names:
        sides[name].ask(command)
    for block in range(blocks):
        for name in names if block % 2 == 0 else reversed(names):
            costs[name].append(sides[name].ask(command))
    return costs


def ratio(ours: list[float], peer: list[float], draws: int = 5000, seed: int = 0) -> tuple[float, float, float]:
    """Median of the peer's costs over the median of ours, with a bootstrap 95 % interval over blocks."""
    a, b, rng = np.asarray(ours), np.asarray(peer), np.random.default_rng(seed)
    x = np.median(a[rng.integers(0, len(a), (draws, len(a)))], 1)
    y = np.median(b[rng.integers(0, len(b), (draws, len(b)))], 1)
    low, high = np.quantile(y / x, [0.025, 0.975])
    return float(np.median(b) / np.median(a)), float(low), float(high)


def rows(
    name: str, peer: str, work: str, costs: dict[str, list[dict[str, float]]], **more: Any
) -> list[dict[str, Any]]:
    """Result rows of one measurement: processor and wall seconds (peer's over ours; above 1 ours needs less)."""
    out: list[dict[str, Any]] = []
    for unit, suffix in (("cpu", ""), ("wall", "-wall")):
        a, b = ([c[unit] for c in costs[side]] for side in ("ours", "peer"))
        point, low, high = ratio(a, b)
        out.append({"name": name + suffix, "ratio": point, "low": low, "high": high, "peer": peer,
                    "unit": f"{unit} seconds per {work}", "ours": float(np.median(a)), "theirs": float(np.median(b)),
                    **more})  # fmt: skip
    return out


def memory(name: str, peer: str, sides: dict[str, Worker]) -> dict[str, Any]:
    """The peak of resident memory over what was resident before the first pass, peer's over ours."""
    a, b = (sides[side].ask("memory")["growth"] for side in ("ours", "peer"))
    return {"name": f"{name}-memory", "ratio": b / a, "low": None, "high": None, "peer": peer, "unit": "MiB grown",
            "ours": a, "theirs": b}  # fmt: skip


def finish(
    name: str, ratios: list[dict[str, Any]], versions: dict[str, str], settings: dict[str, Any], keep: bool
) -> None:
    """Print the table; write it too if `keep`."""
    table = Table("work", "unit", "anypolicy", "peer", "peer / anypolicy [95 %]")
    for r in ratios:
        interval = f" [{r['low']:.2f}, {r['high']:.2f}]" if r["low"] is not None else ""
        table.add_row(r["name"], r["unit"], f"{r['ours']:.4g}", f"{r['theirs']:.4g} ({r['peer']})",
                      f"{r['ratio']:.2f}{interval}")  # fmt: skip
    Console(width=140).print(table)
    if keep:
        print(write(name, ratios, versions, settings))


def write(name: str, ratios: list[dict[str, Any]], versions: dict[str, str], settings: dict[str, Any]) -> Path:
    """Into benchmarks/results/<name>.json; rows of it that this run did not measure stay."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {"ratios": [], "versions": {}}
    new = {r["name"] for r in ratios}
    ratios = [r for r in before["ratios"] if r["name"] not in new] + ratios
    versions = before["versions"] | versions
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    value = {"ratios": ratios, "versions": versions, "settings": settings, "machine": machine}
    path.write_text(json_text(value, indent=1) + "\n")
    return path
