"""Writing so that nothing is ever half there: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from anypolicy.errors import InputError

PREFIX = ".writing-"


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """A full disk or a forbidden place becomes one clear error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = getattr(error, "errno", None)
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
            word in str(error) for word in ("No space left", "File too large", "os error 28", "os error 27")
        )
        if full:
            raise InputError(
                "out", str(path), "the disk is full: free space, then `anypolicy resume` goes on"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise InputError("out", str(path), f"it cannot be written ({error}): choose another place") from error
        raise


def sync(path: Path) -> None:
    """fsync a file or directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    with disk_errors(path):
        handle, name = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and is gone when it does not."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
        try:
            yield work
            for file in work.rglob("*"):
                sync(file)
            sync(work)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
                os.replace(path, old / "old")
                os.replace(work, path)
                shutil.rmtree(old)
            else:
                os.replace(work, path)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        os.chmod(path, 0o755)
        sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove what a killed writer left behind."""
    for leftover in folder.glob(PREFIX + "*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
