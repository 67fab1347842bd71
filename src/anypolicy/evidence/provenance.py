"""Where numbers come from: the commit, the sources that made them, the machine, and the processor time."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from anypolicy.version import __version__

PACKAGE = Path(__file__).resolve().parents[1]


def sources(path: Path, package: Path = PACKAGE) -> list[Path]:
    """A file and every file of the package that it imports, directly or through others. Who imports the catalogue
    imports all methods."""
    found, waiting = set[Path](), [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        if file.suffix == ".py":
            waiting += [f for name in imported(file) for f in files(name, package)]
            waiting += file.parent.glob("*.c") if package in file.parents else ()
        if file == package / "catalogue.py":
            waiting += (package / "methods").rglob("*.py")
    return sorted(found)


def imported(file: Path) -> Iterator[str]:
    """The names that a file imports anywhere in it when it runs; those behind `from` may be modules or not."""
    waiting: list[ast.AST] = [ast.parse(file.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def files(name: str, package: Path) -> list[Path]:
    """The file of a module of the package, and those of the packages it is in."""
    first, *rest = name.split(".")
    if first != package.name:
        return []
    places = [package.joinpath(*rest[:n]) for n in range(len(rest) + 1)]
    found = [place / "__init__.py" for place in places] + [places[-1].with_suffix(".py")]
    return [f for f in found if f.is_file()]


def digest(paths: list[Path], base: Path) -> str:
    """SHA-256 of the names (below `base`, or alone) and bytes of files."""
    total = hashlib.sha256()
    for path in paths:
        name = path.relative_to(base).as_posix() if base in path.parents else path.name
        total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def provenance(path: Path, seeds: list[int], processor_seconds: float) -> dict[str, Any]:
    """What is written down of runs of a claim that end now."""
    return {
        "seeds": seeds,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "claim_sha256": digest([path.resolve()], path.resolve().parent),
        "sources_sha256": digest(sources(path), PACKAGE),
        "machine": machine(),
        "processor_seconds": round(processor_seconds, 1),
        "versions": {"anypolicy": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def commit(package: Path = PACKAGE) -> str | None:
    """The commit of the checkout that the package is in, with a mark if its files differ; None outside of one."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=package).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def versions() -> Mapping[str, str | None]:
    """What computes here, asked once: the package with its commit (None outside of a checkout), Python, libraries, the
    machine."""
    names = ("torch", "numpy", "transformers", "gymnasium", "safetensors")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"anypolicy": __version__, "commit": commit(), "python": platform.python_version(), **found,
            "machine": machine()}  # fmt: skip


def machine() -> str:
    """The processor in words."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def processor_seconds() -> float:
    """What this process and its finished children have used so far."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in both)
