"""What all benchmarks share: workers in other environments, ratios with intervals, one form of result file."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"


class Worker:
    """A process that answers one JSON line with one JSON line."""

    def __init__(self, python: Path, script: Path, settings: dict[str, Any]):
        self.process = subprocess.Popen(
            [str(python), str(script), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

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


def ratio(ours: list[float], peer: list[float], draws: int = 5000, seed: int = 0) -> tuple[float, float, float]:
    """Median of the peer's costs over the median of ours, with a bootstrap 95 % interval over blocks."""
    a, b, rng = np.asarray(ours), np.asarray(peer), np.random.default_rng(seed)
    x = np.median(a[rng.integers(0, len(a), (draws, len(a)))], 1)
    y = np.median(b[rng.integers(0, len(b), (draws, len(b)))], 1)
    low, high = np.quantile(y / x, [0.025, 0.975])
    return float(np.median(b) / np.median(a)), float(low), float(high)


def write(name: str, ratios: list[dict[str, Any]], versions: dict[str, str], settings: dict[str, Any]) -> Path:
    """benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    value = {"ratios": ratios, "versions": versions, "settings": settings, "machine": machine}
    path.write_text(json.dumps(value, indent=1) + "\n")
    return path
