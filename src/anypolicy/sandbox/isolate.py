"""The first process of a sandbox, its pid 1, given to Python as text. Nothing but the standard library may be imported.

The backend has made the namespaces (and bubblewrap the read-only root). This process checks them, mounts what is
missing, becomes a user without rights, sets limits and forbids system calls; then it runs the texts that follow
(`inside.py`) one after another in one namespace. When it ends the kernel ends all others, and no process in the
sandbox can end it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:  # what is imported here costs time in every run
    from typing import Any

    Config = dict[str, Any]

libc = ctypes.CDLL(None, use_errno=True)
RDONLY, NOSUID, NODEV, NOEXEC, BIND, REC = 1, 2, 4, 8, 1 << 12, 1 << 14
DETACH, NEWUSER = 2, 1 << 28
DUMPABLE, SECCOMP, BOUNDING_DROP, NO_NEW_PRIVS = 4, 22, 24, 38
NOBODY = 65534

# x86-64 and aarch64 numbers; -1 where the machine has no such call
DENIED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "syslog": (103, 116), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, -1),
    "ioperm": (173, -1), "modify_ldt": (154, -1), "personality": (135, 92), "fanotify_init": (300, 262),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "execve": (59, 221), "execveat": (322, 281), "inotify_init": (253, -1), "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27), "flock": (73, 32), "sync": (162, 81), "syncfs": (306, 267),
}  # fmt: skip
CLONE, CLONE3, SOCKET, SOCKETPAIR, FCNTL = (56, 220), (435, 435), (41, 198), (53, 199), (72, 25)
SETLEASE, NOTIFY = 1024, 1026
NEWEST = 450
AUDIT = (0xC000003E, 0xC00000B7)
NEW_NAMESPACE = 0x7E020000


def column() -> int:
    return ("x86_64", "aarch64").index(os.uname().machine)


def must(result: int, what: str) -> None:
    """Stop unless a call of the C library went well."""
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


# --- files -----------------------------------------------------------------------------------------------------------
def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    must(
        libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()),
        f"mount {target}",
    )


class Attributes(ctypes.Structure):
    """struct mount_attr: what to set and to clear on a whole tree of mounts."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def protect(path: str, flags: int, *, recursive: bool) -> None:
    """Add flags such as read-only to a mount and, if asked, all below it."""
    attributes = Attributes(flags, 0, 0, 0)
    at_fdcwd, at_recursive = ctypes.c_long(-100), ctypes.c_ulong(0x8000 if recursive else 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    must(
        libc.syscall(ctypes.c_long(442), at_fdcwd, path.encode(), at_recursive, ctypes.byref(attributes), size),
        f"mount_setattr {path}",
    )


def make_root(folders: list[str], devices: list[str], links: list[list[str]]) -> None:
    """A root of its own: the given folders, files and devices read-only, links, an empty /tmp."""
    held = {path: os.open(path, os.O_PATH) for path in (*folders, *devices)}
    root = "/tmp"
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    for path, fd in held.items():
        place = root + path
        os.makedirs(os.path.dirname(place), 0o755, exist_ok=True)
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            os.makedirs(place, 0o755, exist_ok=True)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o444))
        mount(f"/proc/self/fd/{fd}", place, "", BIND | REC)
        if path not in devices:
            protect(place, RDONLY | NOSUID | NODEV, recursive=True)
        os.close(fd)
    for target, path in links:
        os.symlink(target, root + path)
    os.mkdir(root + "/tmp")
    os.chdir(root)
    here = b"."
    must(libc.syscall(ctypes.c_long(DENIED["pivot_root"][column()]), here, here), "pivot_root")
    must(libc.umount2(here, DETACH), "umount the old root")
    os.chdir("/")
    protect("/", RDONLY | NOSUID | NODEV, recursive=False)


def make_tmp(disk: int, files: int) -> None:
    """The only place where the program can write; it counts as memory, and /dev/shm leads there."""
    mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV | NOEXEC, f"size={disk},nr_inodes={files},mode=1777")
    os.chdir("/tmp")


# --- rights ----------------------------------------------------------------------------------------------------------
def become_nobody(privileged: bool, proc: int) -> None:
    """User 1000 of a user namespace of its own, without a capability; outside it is nobody or the calling user."""
    if privileged:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    must(libc.prctl(DUMPABLE, 1, 0, 0, 0), "prctl dumpable")
    uid, gid = os.geteuid(), os.getegid()
    must(libc.unshare(NEWUSER), "unshare user")
    maps = {"setgroups": "deny", "uid_map": f"1000 {uid} 1", "gid_map": f"1000 {gid} 1"}
    for name, text in maps.items():
        fd = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(fd, text.encode())
        os.close(fd)
    os.close(proc)
    for capability in range(64):
        if libc.prctl(BOUNDING_DROP, capability, 0, 0, 0) != 0:
            break
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    must(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    must(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "prctl no_new_privs")


def set_limits(limits: dict[str, int]) -> None:
    """Hard limits, so that nobody can raise them."""
    exact = {
        resource.RLIMIT_AS: limits["memory"], resource.RLIMIT_FSIZE: limits["file_size"],
        resource.RLIMIT_CORE: 1,  # unlike 0 it also keeps a core from the machine's own handler
        resource.RLIMIT_NOFILE: limits["open_files"], resource.RLIMIT_NPROC: limits["processes"] + 1,
        resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_SIGPENDING: 256,
        resource.RLIMIT_RTPRIO: 0, resource.RLIMIT_NICE: 0,
    }  # fmt: skip
    for name, value in exact.items():
        resource.setrlimit(name, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))


def filter_calls() -> None:
    """A seccomp filter: the denied calls fail, sockets are Unix ones, no new namespaces, nothing newer than known."""
    at = column()
    load, equal, above, any_bit, back = 0x20, 0x15, 0x25, 0x45, 0x06
    allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000
    nr, arch, first, second = 0, 4, 16, 24
    code = [(load, 0, 0, arch), (equal, 1, 0, AUDIT[at]), (back, 0, 0, kill), (load, 0, 0, nr)]
    code += [(above, 0, 1, NEWEST), (back, 0, 0, error | 38)]  # so x32's numbers are unknown as well
    code += [(equal, 0, 1, CLONE3[at]), (back, 0, 0, error | 38)]
    for numbers in DENIED.values():
        if numbers[at] >= 0:
            code += [(equal, 0, 1, numbers[at]), (back, 0, 0, error | 1)]
    unix = [(load, 0, 0, first), (equal, 1, 0, 1), (back, 0, 0, error | 97)]
    old = [(load, 0, 0, first), (any_bit, 0, 1, NEW_NAMESPACE), (back, 0, 0, error | 1)]
    own = [(load, 0, 0, second), (equal, 1, 0, SETLEASE), (equal, 0, 1, NOTIFY), (back, 0, 0, error | 1)]
    for numbers, rule in ((CLONE, old), (SOCKET, unix), (SOCKETPAIR, unix), (FCNTL, own)):
        code += [(equal, 0, len(rule) + 1, numbers[at]), *rule, (back, 0, 0, allow)]
    code += [(back, 0, 0, allow)]
    text = b"".join(c.to_bytes(2, "little") + bytes((jt, jf)) + k.to_bytes(4, "little") for c, jt, jf, k in code)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    program = Program(len(code), text)
    must(libc.prctl(SECCOMP, 2, ctypes.byref(program), 0, 0), "prctl seccomp")


def check_namespaces(config: Config) -> None:
    """Nothing may be touched before it is sure that it is not the machine's own."""
    if os.getpid() != 1:
        raise RuntimeError("this is not the first process of a pid namespace")
    for name, theirs in config["namespaces"].items():
        if os.readlink(f"self/ns/{name}", dir_fd=config["proc"]) == theirs:
            raise RuntimeError(f"the {name} namespace is the machine's own")


def isolate(config: Config) -> None:
    """All of the above, in the one order that works."""
    check_namespaces(config)
    if os.getpgrp() != 1:
        os.setsid()  # a signal to the program's own group reaches nobody outside
    if config["folders"] is not None:
        make_root(config["folders"], config["devices"], config["links"])
    for path in config["devices"]:
        protect(path, RDONLY | NOSUID | NOEXEC, recursive=False)
    limits = config["limits"]
    make_tmp(limits["disk"], limits["files"])
    must(libc.sethostname(b"sandbox", 7), "sethostname")
    become_nobody(config["privileged"], config["proc"])
    set_limits(limits)
    filter_calls()
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(config["environment"])


def end_with_caller(status: int) -> None:
    """End the sandbox when nobody holds the other end of the status pipe any more."""
    poll = select.poll()
    poll.register(status, 0)

    def look(*_: Any) -> None:
        if poll.poll(0):
            os._exit(1)

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(status, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(status, fcntl.F_SETFL, fcntl.fcntl(status, fcntl.F_GETFL) | os.O_ASYNC)
    look()


def main() -> None:
    config, texts = json.loads(sys.argv[1]), sys.argv[2:]
    sys.argv[2:], sys.orig_argv[:] = [], [sys.executable]
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the first process of a pid namespace ignores
    isolate(config)
    os.set_inheritable(config["status"], False)
    end_with_caller(config["status"])
    space = {"__name__": "__main__"}
    for text in texts:
        types.FunctionType(compile(text, "inside", "exec"), space)()


if __name__ == "__main__":
    main()
