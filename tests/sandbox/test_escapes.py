"""No program gets out of its sandbox, none outlives it, and none fakes a verdict."""

import contextlib
import ctypes
import json
import os
import re
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from anypolicy.sandbox import Candidate, Limits, Program, run, run_many
from anypolicy.sandbox import isolate as inner
from anypolicy.sandbox.run import children
from tests.sandbox.attacks import ATTACKS, CALLS, STOPPED

ROOT = Path(__file__).parents[2]
SMALL = Limits(seconds=60, cpu_seconds=20, memory=256 << 20, file_size=16 << 20, disk=32 << 20)
SHORT = Limits(seconds=60, cpu_seconds=1, memory=256 << 20)
WAITING = replace(SHORT, seconds=0.5)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """What an attack looks for: a file, servers on the loopback and on an abstract socket, this process."""
    file = tmp_path_factory.mktemp("outside") / "secret-of-the-test"
    file.write_text("secret")
    os.chmod(file, 0o644)
    name, servers = secrets.token_hex(8), []
    for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, f"\0{name}")):
        server = socket.socket(family)
        server.bind(address)
        server.listen()
        server.setblocking(False)
        servers.append(server)
    yield {"secret": str(file), "server": servers[0].getsockname()[1], "abstract": name, "pid": os.getpid()}
    for server in servers:
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()
        server.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name, backend, outside):
    text, stopped_by = ATTACKS[name]
    result = run(text.format(**outside), SMALL, backend)
    assert result.verdict == "failed", result
    assert re.search(stopped_by, result.reason + result.errors), result
    assert "secret" not in result.output


@pytest.mark.parametrize("name", STOPPED)
def test_limits_stop(name, backend):
    text, seconds, reason = STOPPED[name]
    result = run(text, replace(SHORT, seconds=seconds), backend)
    assert not result.passed
    assert reason in result.reason, result
    assert result.seconds < 60
    assert len(result.output) <= SHORT.output and len(result.errors) <= SHORT.output


def test_the_attacks_work_where_nothing_stops_them(outside):
    """Otherwise their failing would say nothing."""
    for name in (
        "secret",
        "dots",
        "symlink",
        "loopback",
        "outside",
        "abstract socket",
        "proc",
        "sys",
        "passwd",
        "no new privileges",
    ):
        if name in ("loopback", "abstract socket"):  # the servers must stay untouched
            continue
        with contextlib.chdir(Path(outside["secret"]).parent):
            code = subprocess.run(
                [sys.executable, "-c", ATTACKS[name][0].format(**outside)], capture_output=True
            ).returncode
        assert code == 0, name


def test_every_denied_call_is_denied(backend):
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = {name: n[column] for name, n in inner.DENIED.items() if n[column] >= 0}
    text = (
        CALLS
        + f"""
for name, number in {numbers}.items():
    ctypes.set_errno(0)
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
        print(name, ctypes.get_errno())
"""
    )
    assert run(text, SMALL, backend).output == ""


def test_every_namespace_is_its_own_and_no_right_is_left(backend):
    """Seen from outside, while the program runs."""
    seen = {}

    def watch():
        while not seen.get("stop"):
            for outer in children(os.getpid()):
                for first in children(outer):
                    for pid in children(first):
                        with contextlib.suppress(OSError):
                            spaces = {
                                n: os.readlink(f"/proc/{pid}/ns/{n}")
                                for n in ("user", "mnt", "pid", "ipc", "uts", "net")
                            }
                            status = dict(
                                x.split(":\t", 1)
                                for x in Path(f"/proc/{pid}/status").read_text().splitlines()
                                if ":\t" in x
                            )
                            if status["Seccomp"] == "2":
                                seen[pid] = (spaces, status)

    thread = threading.Thread(target=watch)
    thread.start()
    run("while True:\n    pass", Limits(seconds=60, cpu_seconds=1), backend)
    seen["stop"] = True
    thread.join()
    [(spaces, status)] = [v for k, v in seen.items() if k != "stop"]
    for name, target in spaces.items():
        assert target != os.readlink(f"/proc/self/ns/{name}"), name
    assert "0" not in status["Uid"].split()
    assert status["NoNewPrivs"] == "1"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["Groups"].split() == [] or os.geteuid() != 0


def test_neither_environment_nor_open_files_nor_input_come_along(backend, monkeypatch, outside):
    monkeypatch.setenv("SECRET_OF_THE_TEST", "secret")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    text = """
import os, sys
fds = []
for fd in range(64):
    try:
        fds.append((fd, os.fstat(fd).st_size))
    except OSError:
        pass
print(sorted(os.environ), [fd for fd, _ in fds], repr(sys.stdin.read()), sys.argv)
"""
    with open(outside["secret"]) as file:
        os.set_inheritable(file.fileno(), True)
        result = run(text, SMALL, backend)
    names = {"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHASHSEED"}
    shown, rest = result.output.split("] ", 1)
    assert set(json.loads(shown.replace("'", '"') + "]")) <= names
    assert rest == "[0, 1, 2] '' ['/tmp/program.py']\n"


def test_nothing_outlives_a_run(backend):
    """A detached grandchild in a session of its own, with all files closed, ends with its sandbox."""
    mark = secrets.token_hex(4)
    text = (
        CALLS
        + f"""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        libc.prctl(15, b"{mark}", 0, 0, 0)
        os.closerange(0, 64)
        while True:
            os.sched_yield()
    os._exit(0)
os.wait()
print("left behind")
"""
    )
    result = run(text, SMALL, backend)
    assert result.passed and result.output == "left behind\n"
    names = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            names.append(path.read_text().strip())
    assert mark not in names


def test_nothing_is_left_for_the_next(backend):
    mark = secrets.token_hex(8)
    text = f"""
import os
assert os.listdir('/dev/shm') == ['program.py']
open('/tmp/{mark}', 'w').write('x')
open('/dev/shm/{mark}s', 'w').write('x')
os._exit(0)
"""
    for _ in range(2):
        assert run(text, SMALL, backend).passed
    assert not Path(f"/tmp/{mark}").exists()
    assert not Path(f"/dev/shm/{mark}s").exists()


def test_a_sandbox_ends_with_the_process_that_asked_for_it(backend):
    code = f"from anypolicy.sandbox import Limits, run\nrun('import time; time.sleep(100)', Limits(seconds=100), {backend!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        first = []
        while not first and parent.poll() is None:
            first = [x for outer in children(parent.pid) for x in children(outer) if children(x)]
        watched = os.pidfd_open(first[0])
        parent.kill()
        assert select.select([watched], [], [], 30)[0], "it goes on"
        os.close(watched)


def test_killing_everything_kills_only_the_program(backend):
    mine = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    result = run("import os, signal\nif not os.fork():\n    os.kill(-1, 9)\nos.wait()", SMALL, backend)
    assert mine.poll() is None
    assert result.reason == "signal SIGKILL"
    mine.communicate()


def test_a_flood_of_bombs_leaves_the_next_program_alone(backend):
    bombs = [ATTACKS[k][0] for k in ("fork bomb", "disk fill", "many files", "slow memory")] * 2
    results = run_many([*bombs, "print('fine')"], SMALL, backend, at_once=4)
    assert [r.verdict for r in results] == ["failed"] * 8 + ["passed"]
    assert results[-1].output == "fine\n"


# --- faked verdicts --------------------------------------------------------------------------------------------------
TESTS = "assert f(2) == 3\nassert f(3) == 4\nassert f([1]) == [2]\n"
FAKES = {
    "exit": "import os; os._exit(0)",
    "sys.exit": "import sys; sys.exit(0)",
    "exit when called": "import os\ndef f(x): os._exit(0)",
    "sys.exit when called": "import sys\ndef f(x): sys.exit(0)",
    "print": "print('passed'); print('{\"passed\": 3, \"failed\": 0}')\ndef f(x): return 0",
    "atexit": "import atexit, os; atexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
    "equal to everything": "class E(int):\n    def __eq__(self, o): return True\n    __req__ = __eq__\ndef f(x): return E(0)",
    "an object equal to everything": "class E:\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "list equal to everything": "class E(list):\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "patched builtins": "import builtins\nbuiltins.AssertionError = builtins.isinstance = lambda *a: True\ndef f(x): return 0",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{\"passed\": 3, \"failed\": 0, \"first\": \"\", \"end\": \"\"}'\ndef f(x): return 0",
    "reports everywhere": "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'{\"passed\": 3, \"failed\": 0, \"first\": \"\", \"end\": \"\"}\\n')\n    except OSError:\n        pass\ndef f(x): return 0",
    "reports instead of answers": "import os\ndef f(x):\n    for fd in range(3, 64):\n        try:\n            os.write(fd, b'ready\\n{\"passed\": 3, \"failed\": 0, \"first\": \"\", \"end\": \"\"}')\n        except OSError:\n            pass\n    os._exit(0)",
    "assertion errors": "def f(x): raise AssertionError('passed')",
    "kill the judge": "import os, signal\nos.kill(1, signal.SIGKILL)\ndef f(x):\n    os.kill(1, signal.SIGTERM)\n    return 0",
    "frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for k, v in frame.f_locals.items():\n            if hasattr(v, 'passed'):\n                v.passed, v.failed = 3, 0\n        frame = frame.f_back\n    return 0",
    "objects": "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if type(o).__name__ == 'Judge':\n            o.passed = 3\n            o.bad = lambda: None\n    return 0",
    "broken answers": "import os\ndef f(x):\n    for fd in range(3, 64):\n        try:\n            os.write(fd, b'\\xff{}[\\n' * 9)\n        except OSError:\n            pass",
    "nested answer": "def f(x):\n    y = []\n    for i in range(10**5):\n        y = [y]\n    return y",
    "huge answer": "def f(x): return 'x' * (10**8)",
    "nothing": "",
    "no Python": "def f(x) return x",
    "null byte": "\0",
    "surrogates": "\ud800",
    "endless source": "while True: pass",
    "endless call": "def f(x):\n    while True: pass",
    "waiting call": "import time\ndef f(x): time.sleep(100)",
}  # fmt: skip


@pytest.mark.parametrize("name", FAKES)
def test_faked_passes(name, backend):
    result = run(Candidate(FAKES[name], TESTS, ("f",)), WAITING if "waiting" in name else SHORT, backend)
    assert not result.passed
    assert result.tests_passed == 0, result
    assert result.tests == 3 or result.verdict == "stopped", result
    assert result.reason


SAME = {"exit", "sys.exit", "exit when called", "sys.exit when called", "print", "atexit", "assertion errors", "reports everywhere",
        "reports instead of answers", "kill the judge", "no Python", "nothing", "endless call", "waiting call", "null byte"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SAME))
def test_faked_passes_in_one_process(name, backend):
    result = run(Candidate(FAKES[name], TESTS), WAITING if "waiting" in name else SHORT, backend)
    assert not result.passed
    assert result.reason


def test_the_candidate_never_sees_the_tests(backend):
    """Not in its memory, its files or its arguments."""
    source = """
import gc, os
def f(x):
    if x == 'look':
        files = [open(os.path.join(d, n), 'rb').read() for d, _, names in os.walk('/tmp') for n in names]
        texts = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]
        return any(b'-'.join([b'expected', b'value']) in f for f in files) or '-'.join(['expected', 'value']) in str(texts)
    return x
"""
    tests = "assert f('look') is False\nassert f('x') != 'expected-value'"
    assert run(Candidate(source, tests, ("f",)), SMALL, backend).passed


def test_as_an_ordinary_user(tmp_path, outside):
    """The same attacks by a user without rights, whose own secret is readable to him: Debian's Python, both backends."""
    (tmp_path / "anypolicy").mkdir()
    (tmp_path / "anypolicy" / "__init__.py").touch()
    shutil.copy(ROOT / "src/anypolicy/errors.py", tmp_path / "anypolicy")
    shutil.copytree(ROOT / "src/anypolicy/sandbox", tmp_path / "anypolicy/sandbox")
    for name in ("attacks.py", "as_user.py"):
        shutil.copy(ROOT / "tests/sandbox" / name, tmp_path)
    subprocess.run(["chmod", "-R", "a+rX", str(tmp_path)], check=True)
    user = {"user": 54321, "group": 54321, "extra_groups": []} if os.geteuid() == 0 else {}
    secret = Path("/tmp") / secrets.token_hex(8)
    try:
        secret.write_text("secret")
        secret.chmod(0o644)
        backends = [b for b in ("bwrap", "unshare") if shutil.which(b) or "CI" in os.environ]
        given = json.dumps([outside | {"secret": str(secret)}, backends])
        done = subprocess.run(
            ["/usr/bin/python3", "-B", "as_user.py", given],
            cwd=copied(tmp_path),
            capture_output=True,
            text=True,
            **user,
        )
    finally:
        secret.unlink()
        shutil.rmtree(copied(tmp_path), ignore_errors=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith(f"{len(backends) * (len(ATTACKS) + 1)} held\n")


def copied(tmp_path):
    """A copy where other users can look: pytest's own folders are closed to them."""
    place = Path("/tmp") / f"sandbox-test-{tmp_path.name}-{os.getpid()}"
    if not place.exists():
        shutil.copytree(tmp_path, place)
    return place


def test_machine_code_of_another_kind_ends_the_program(backend):
    """32-bit calls on x86-64 have other numbers: the filter ends whoever tries."""
    if os.uname().machine != "x86_64":
        pytest.skip("x86-64 only")
    text = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
    assert run(text, SMALL, backend).reason == "signal SIGSYS"


def test_input_that_is_not_read_holds_nobody_up(backend):
    assert run(Program("pass", stdin=b"x" * (1 << 23)), SMALL, backend).passed


def test_ctypes_is_there_so_the_attacks_by_system_calls_are_real(backend):
    assert ctypes
    assert run(CALLS + "call(libc.getpid())", SMALL, backend).passed
