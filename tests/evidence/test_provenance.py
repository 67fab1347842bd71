"""What evidence says of its origin."""

import re
import subprocess
from pathlib import Path

from anypolicy.evidence.provenance import PACKAGE, commit, digest, machine, provenance, sources

ROOT = Path(__file__).parents[2]


def test_the_sources_of_a_claim_are_what_it_imports(tmp_path):
    package = tmp_path / "anypolicy"
    (package / "methods").mkdir(parents=True)
    for name, text in {
        "__init__.py": "", "a.py": "from anypolicy import b\nif TYPE_CHECKING:\n    import anypolicy.d\n", "b.py": "def f():\n    import anypolicy.c\n", "c.py": "",
        "d.py": "", "e.py": "from anypolicy.catalogue import get\n", "catalogue.py": "", "methods/__init__.py": "",
        "methods/m.py": "from anypolicy.d import x\n",
    }.items():  # fmt: skip
        (package / name).write_text(text)
    claim = tmp_path / "claim.py"
    claim.write_text("import numpy\nfrom anypolicy.a import f\n")
    assert [p.name for p in sources(claim, package)] == ["__init__.py", "a.py", "b.py", "c.py", "claim.py"]
    claim.write_text("from anypolicy.e import get\n")
    found = {p.relative_to(tmp_path).as_posix() for p in sources(claim, package)}
    assert found == {"claim.py"} | {f"anypolicy/{n}" for n in ("__init__.py", "e.py", "catalogue.py", "methods/__init__.py",
                                                               "methods/m.py", "d.py")}  # fmt: skip


def test_the_digest_follows_names_and_bytes(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("x = 1\n")
    first = digest([a], tmp_path)
    assert digest([a], tmp_path) == first and re.fullmatch(r"[0-9a-f]{64}", first)
    a.write_text("x = 2\n")
    assert digest([a], tmp_path) != first
    b.write_text("x = 2\n")
    assert digest([a], tmp_path) != digest([b], tmp_path)


def test_a_real_claim_uses_the_decoder_but_not_the_command_line():
    found = sources(ROOT / "claims" / "ngrpo.py")
    assert PACKAGE / "policies" / "language" / "decode.c" in found and PACKAGE / "catalogue.py" in found
    assert PACKAGE / "cli" / "app.py" not in found


def test_commit_and_machine(tmp_path):
    (tmp_path / "__init__.py").write_text("x = 1\n")
    assert commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit(tmp_path) is None
    for words in (["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert commit(tmp_path) == head
    (tmp_path / "__init__.py").write_text("x = 2\n")
    assert commit(tmp_path) == f"{head} with changes"
    made = provenance(tmp_path / "__init__.py", [0, 1], 12.34)
    assert made["seeds"] == [0, 1] and made["processor_seconds"] == 12.3
    assert made["machine"] == machine() and "cores" in machine()
