"""How a sandbox is begun: bubblewrap, or unshare of util-linux. Both end in `isolate.py` as pid 1 of new namespaces.

As root neither makes a user namespace at the start (the Python to run may be where only root can look); `isolate.py`
becomes nobody and makes its own. An ordinary user begins with one, which gives the right to mount within it.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anypolicy.errors import InputError

Backend = Literal["auto", "bwrap", "unshare"]
BACKENDS = ("bwrap", "unshare")
MACHINES = ("x86_64", "aarch64")
DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
ADMIN, SETGID, SETUID = 21, 6, 7


@functools.cache
def choose(backend: str) -> str:
    """The backend to use, with what the machine lacks said before anything is run."""
    if backend not in ("auto", *BACKENDS):
        raise InputError("sandbox.backend", backend, "use auto, bwrap or unshare", choices=("auto", *BACKENDS))
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        have = f"{sys.platform} on {platform.machine()}"
        raise InputError("sandbox", have, "programs can only be isolated on Linux on x86-64 or aarch64")
    if not Path("/proc/thread-self/children").exists():
        raise InputError("sandbox", "/proc", "it lists no children (CONFIG_PROC_CHILDREN), by which memory is watched")
    for name in BACKENDS if backend == "auto" else (backend,):
        if shutil.which(name):
            return name
    package = {"auto": "bubblewrap", "bwrap": "bubblewrap", "unshare": "util-linux"}[backend]
    raise InputError("sandbox.backend", backend, f"the machine has no such tool: install {package}")


def privileged() -> bool:
    """Whether this is root with all it takes; refused: root without it, whose files a program would own."""
    if os.geteuid() != 0:
        return False
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("CapEff:")]
    held = int(line.split()[1], 16)
    if not all(held >> c & 1 for c in (ADMIN, SETGID, SETUID)):
        raise InputError(
            "sandbox", "root without CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID",
            "a program would run as the owner of root's files: run as an ordinary user or with these rights",
        )  # fmt: skip
    return True


@functools.cache
def python() -> str:
    """The interpreter itself, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def readable() -> tuple[list[str], list[list[str]]]:
    """What the program can read of this machine: the interpreter, its library, shared libraries, time zones.

    Folders and files to bind, none within another; links of the root (target, path) to make again.
    """
    prefix = Path(python()).parents[1]
    wanted = [
        python(), os.path.realpath(os.path.dirname(os.__file__)), str(prefix / "lib"), str(prefix / sys.platlibdir),
        "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache",
    ]  # fmt: skip
    links: list[list[str]] = [["../tmp", "/dev/shm"]]
    for path in ("/lib", "/lib64"):
        if os.path.islink(path):
            links.append([os.readlink(path), path])
        else:
            wanted.append(path)
    folders: list[str] = []
    for path in sorted({p for p in wanted if os.path.exists(p) and not os.path.islink(p)}):
        if not any(path.startswith(f + "/") for f in folders):
            folders.append(path)
    return folders, links


@functools.cache
def environment() -> dict[str, str]:
    """All of the program's environment; an interpreter outside /usr may have its shared libraries beside it."""
    own = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    prefix = Path(python()).parents[1]
    return own if prefix == Path("/usr") else own | {"LD_LIBRARY_PATH": str(prefix / "lib")}


def begin(
    backend: str, config: dict[str, Any], more: Sequence[str] = ()
) -> tuple[list[str], dict[str, Any]]:  # fmt: skip
    """The command up to the interpreter, and the configuration for `isolate.py`; with `more` folders to read."""
    folders, links = readable()
    folders = [*folders, *(f for f in more if not any(f == g or f.startswith(g + "/") for g in folders))]
    root = privileged()
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "ipc", "uts", "net")}
    config = config | {"privileged": root, "devices": DEVICES, "namespaces": own}
    tool = str(shutil.which(backend))
    if backend == "unshare":
        command = [tool, "--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child"]
        command += [] if root else ["--user", "--map-root-user"]
        return [*command, "--"], config | {"folders": folders, "links": links}
    command = [tool, "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--as-pid-1"]
    command += ["--die-with-parent", "--new-session"]
    command += [] if root else ["--unshare-user", "--cap-add", "CAP_SYS_ADMIN"]
    above = {str(parent) for path in (*folders, *DEVICES) for parent in Path(path).parents} - {"/"}
    for path in sorted(above):
        command += ["--dir", path]  # parents that bubblewrap makes by itself are for root only
    for path in folders:
        command += ["--ro-bind", path, path]
    for path in DEVICES:
        command += ["--dev-bind", path, path]
    for target, path in links:
        command += ["--symlink", target, path]
    return [*command, "--dir", "/tmp", "--remount-ro", "/", "--"], config | {"folders": None, "links": []}
