"""Programs that try to get out. Each exits with 0 only where it succeeds, and says in its last line what stopped it.

Only the standard library: the same list also runs under another Python, as an ordinary user. {secret} is a file of the
test outside, {server} the port and {abstract} the name of servers that the test runs, {pid} the test's own process.
"""

CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""

WRITE = "Read-only file system|Permission denied|Text file busy"

# name: (program, a pattern of its last words)
ATTACKS = {
    # files of the host
    "shadow": ("print(open('/etc/shadow').read())", "FileNotFoundError"),
    "passwd": ("print(open('/etc/passwd').read())", "FileNotFoundError"),
    "secret": ("print(open({secret!r}).read())", "FileNotFoundError"),
    "home": ("import os; print(os.listdir('/home'))", "FileNotFoundError"),
    "ssh keys": ("import os; print(os.listdir('/root/.ssh'))", "FileNotFoundError"),
    "host's tmp": ("import os; assert set(os.listdir('/tmp')) - {{'program.py'}}", "AssertionError"),
    "dots": ("print(open('/tmp/../../../..' + {secret!r}).read())", "FileNotFoundError"),
    "symlink": ("import os; os.symlink({secret!r}, 'x'); print(open('x').read())", "FileNotFoundError"),
    "hard link": ("import os; os.link(os.__file__, '/tmp/x')", "OSError"),
    "walk": (
        "import os\nfor folder, names, files in os.walk('/'):\n    assert not [f for f in files if 'secret-of-the-test' in f], 'found'\n"
        "    names[:] = [n for n in names if n != 'lib']\nraise LookupError",
        "LookupError",
    ),
    "source of the project": ("import anypolicy", "ModuleNotFoundError"),
    "opened by handle": (CALLS + "call(libc.open_by_handle_at(-100, b'0' * 64, 0))", "not permitted"),
    # /proc, /sys, devices
    "proc": ("import os; print(os.listdir('/proc'))", "FileNotFoundError"),
    "environment of others": ("print(open('/proc/1/environ').read())", "FileNotFoundError"),
    "memory of others": ("open('/proc/1/mem', 'rb')", "FileNotFoundError"),
    "kernel settings": ("open('/proc/sys/kernel/core_pattern', 'w').write('x')", "FileNotFoundError"),
    "sys": ("import os; print(os.listdir('/sys'))", "FileNotFoundError"),
    "dev": (
        "import os; assert set(os.listdir('/dev')) - {{'null', 'zero', 'full', 'random', 'urandom', 'shm'}}",
        "AssertionError",
    ),
    "disk": ("import os; os.mknod('/tmp/disk', 0o60600, os.makedev(254, 0)); open('/tmp/disk', 'rb').read(1)", "not permitted"),
    "null device": ("import os; os.chmod('/dev/null', 0o777)", "Error"),
    "terminal": ("import fcntl; fcntl.ioctl(0, 0x5412, b'x')", "Inappropriate ioctl"),
    # network
    "loopback": ("import socket; socket.create_connection(('127.0.0.1', {server}), 1)", "Address family not supported"),
    "loopback, IPv6": ("import socket; socket.create_connection(('::1', {server}), 1)", "Address family not supported"),
    "outside": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "Address family not supported"),
    "raw": ("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "Address family not supported"),
    "netlink": ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "Address family not supported"),
    "virtual machine's host": ("import socket; socket.socket(socket.AF_VSOCK, 1)", "Address family not supported"),
    "names": ("import socket; socket.getaddrinfo('example.org', 80)", "gaierror"),
    "abstract socket": ("import socket; socket.socket(1).connect(chr(0) + {abstract!r})", "ConnectionRefusedError"),
    "pair of another family": (CALLS + "call(libc.socketpair(2, 1, 0, (ctypes.c_int * 2)()))", "Address family not supported"),
    # what is left behind, and writing
    "outside tmp": ("open('/x', 'w')", WRITE),
    "library": ("import os; open(os.__file__, 'a')", WRITE),
    "new module": ("import os; open(os.path.dirname(os.__file__) + '/usercustomize.py', 'w')", WRITE),
    "interpreter": ("import sys; open(sys.executable, 'ab')", WRITE),
    "loader": ("open('/etc/ld.so.preload', 'w')", WRITE),
    "device folder": ("open('/dev/x', 'w')", WRITE),
    "touching a device": ("import os; os.utime('/dev/null')", WRITE + "|not permitted"),
    "deleting": ("import os, shutil; shutil.rmtree(os.path.dirname(os.__file__))", WRITE),
    # files that others use as well
    "lock of a library": ("import fcntl, os; fcntl.flock(open(os.__file__), fcntl.LOCK_EX)", "not permitted"),
    "lock of a device": ("import fcntl; fcntl.flock(open('/dev/null'), fcntl.LOCK_SH)", "not permitted"),
    "watching files": (CALLS + "call(libc.inotify_init1(0))", "not permitted"),
    "watching a folder": (
        "import fcntl, os, signal\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "fcntl.fcntl(os.open(os.path.dirname(os.__file__), os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS)",
        "not permitted",
    ),
    "lease": ("import fcntl; open('x', 'w').close(); fcntl.fcntl(open('x'), fcntl.F_SETLEASE, fcntl.F_RDLCK)", "not permitted"),
    # processes
    "parent": ("import os; os.kill({pid}, 9)", "ProcessLookupError"),
    "own init": ("import os; os.kill(1, 9); os.kill(1, 19); assert os.getppid() == 0", "AssertionError"),
    "interrupting init": (
        "import os\nfor _ in range(100):\n    os.kill(1, 2); os.sched_yield()\nraise LookupError", "LookupError",
    ),
    "own group": ("import os; os.kill(0, 9)", "signal SIGKILL"),
    "start arguments": ("import sys; assert sys.orig_argv != [sys.executable]", "AssertionError"),
    "ptrace": (CALLS + "call(libc.ptrace(16, 1, 0, 0))", "not permitted"),
    "fork bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError as e:\n        os.write(2, str(e).encode())\n        os._exit(1)",
        "Resource temporarily unavailable",
    ),
    "threads": (
        "import threading, time\nfor i in range(1000):\n    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "can't start new thread",
    ),
    "priority": ("import os; os.nice(-5)", "Error"),
    "process limit by another namespace": (CALLS + "call(libc.unshare(0x10000000))", "not permitted"),
    "clone into a namespace": (CALLS + "call(libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0))", "not permitted"),
    "x32 calls": (CALLS + "call(libc.syscall(0x40000000 + 101, 16, 1, 0, 0))", "Function not implemented"),
    "unknown calls": (CALLS + "call(libc.syscall(100000))", "Function not implemented"),
    # rights
    "mount": (CALLS + "call(libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, b''))", "not permitted"),
    "writable again": (CALLS + "call(libc.mount(None, b'/', None, 32 | 4096, None))", "not permitted"),
    "unmount": (CALLS + "call(libc.umount2(b'/tmp', 2))", "not permitted"),
    "chroot": ("import os; os.mkdir('a'); os.chroot('a')", "not permitted"),
    "root": ("import os; os.setuid(0)", "Error"),
    "groups": ("import os; os.setgroups([0])", "not permitted"),
    "capabilities": (
        CALLS + "call(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*[2**32 - 1] * 6)))",
        "not permitted",
    ),
    "no new privileges": (CALLS + "assert libc.prctl(39, 0, 0, 0, 0) != 1", "AssertionError"),
    "filter": (CALLS + "assert libc.prctl(21, 0, 0, 0, 0) != 2", "AssertionError"),
    "setuid file": (
        "import os, shutil; shutil.copy(os.__file__, 'x'); os.chmod('x', 0o4755); os.chown('x', 0, 0)", "Error",
    ),
    "own program": ("import os, shutil, sys; shutil.copy(sys.executable, 'p'); os.execv('/tmp/p', ['p', '-c', ''])", "Error"),
    "host's programs": ("import subprocess; subprocess.run(['su', '-c', 'id'])", "PermissionError"),
    "programs beside the libraries": (
        "import os, platform\nloader = {{'x86_64': '/lib64/ld-linux-x86-64.so.2'}}.get(platform.machine(), '/lib/ld-linux-aarch64.so.1')\n"
        "os.execv(loader, [loader, '--version'])",
        "not permitted",
    ),
    "Python again": ("import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)", "not permitted"),
    "program by descriptor": ("import os, sys; os.execve(os.open(sys.executable, os.O_RDONLY), ['x', '-c', ''], {{}})", "not permitted"),
    "shell": ("import os; assert os.system('true') == 0", "AssertionError"),
    "keyring": (CALLS + "call(libc.syscall(250 if os.uname().machine == 'x86_64' else 219, 0, -4, 0))", "not permitted"),
    "clock": ("import time; time.clock_settime(0, 0)", "not permitted"),
    "host name": ("import socket; socket.sethostname('x')", "not permitted"),
    # limits
    "one process's memory": ("x = bytearray(1 << 31)", "MemoryError"),
    "slow memory": ("x = []\nwhile True:\n    x.append(bytearray(1 << 20))", "MemoryError"),
    "memory file": ("import os; os.memfd_create('x')", "not permitted"),
    "disk fill": ("for i in range(99):\n    open(str(i), 'wb').write(bytes(1 << 20))", "No space left"),
    "shared memory fill": ("for i in range(99):\n    open(f'/dev/shm/{{i}}', 'wb').write(bytes(1 << 20))", "No space left"),
    "huge file": ("open('x', 'wb').write(bytes(40 << 20))", "File too large"),
    "sparse file": ("import os; os.truncate(open('x', 'wb').name, 1 << 40)", "File too large"),
    "many files": ("for i in range(10**6):\n    open(str(i), 'w').close()", "No space left"),
    "open files": ("x = [open('/dev/null') for i in range(10**4)]", "Too many open files"),
    "endless recursion": ("def f():\n    f()\nf()", "RecursionError"),
} | {
    f"limit {name}": (
        f"import resource as r; r.setrlimit(r.RLIMIT_{name}, (r.RLIM_INFINITY, r.RLIM_INFINITY))", "not allowed to raise",
    )
    for name in ("AS", "CPU", "FSIZE", "NOFILE", "NPROC", "CORE", "MEMLOCK")
}  # fmt: skip

# name: (program, seconds of wall clock, a part of the reason): what a limit ends from outside
STOPPED = {
    "loop": ("while True:\n    pass", 60, "cpu time"),
    "loop that ignores signals": (
        "import signal\nfor s in (2, 15, 24):\n    signal.signal(s, signal.SIG_IGN)\nwhile True:\n    pass", 60, "SIGKILL",
    ),
    "wait": ("import time; time.sleep(100)", 0.5, "seconds are over"),
    "stopped": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", 0.5, "seconds are over"),
    "output": ("while True:\n    print('x' * 1000)", 60, "bytes of output"),
    "errors": ("import os\nwhile True:\n    os.write(2, b'x' * 1000)", 60, "bytes of errors"),
    "memory of many": (
        "import os, time\nfor i in range(6):\n    if not os.fork():\n        x = bytearray(b'x') * (100 << 20)\n        time.sleep(100)\ntime.sleep(100)",
        60, "bytes of memory",
    ),
    "shared memory of many": (
        "import mmap, os, time\nfor i in range(6):\n    if not os.fork():\n        x = mmap.mmap(-1, 100 << 20)\n        x.write(b'x' * (100 << 20))\n        time.sleep(100)\ntime.sleep(100)",
        60, "bytes of memory",
    ),
}  # fmt: skip
