"""Writing so that nothing is ever half there: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from os.path import isdir, isfile, lexists
from pathlib import Path

from safetensors import SafetensorError

from anypolicy.errors import InputError, names_a_file

PREFIX = ".writing-"
OLD = ".old-"
DAY = 24 * 3600.0
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG,
            errno.EBUSY, errno.ELOOP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # fmt: skip


def cache_folder() -> Path:
    """Where unpacked models, compiled kernels and trained base policies are kept: ANYPOLICY_HOME, or
    ~/.cache/anypolicy."""
    return Path(os.environ.get("ANYPOLICY_HOME", Path.home() / ".cache" / "anypolicy"))


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """A full disk or a forbidden place becomes one clear error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"os error (\d+)", str(error))
        code = int(told[1]) if told else getattr(error, "errno", None)
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
            word in str(error) for word in ("No space left", "File too large")
        )
        if full:
            raise InputError(
                "out", str(path), "the disk is full: free space, then `anypolicy resume` goes on"
            ) from error
        if code in UNUSABLE:
            raise InputError("out", str(path), f"it cannot be written ({error}): choose another place") from error
        raise
    except ValueError as error:
        if isinstance(error, InputError) or names_a_file(str(path)):
            raise
        raise InputError("out", ascii(str(path)), "no file can be called so: choose another place") from error


def check_places(folder: Path, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Refuse a folder in which something else stands where `files` and `folders` will be written."""
    for names, fine, what in ((files, isfile, "an ordinary file"), (folders, isdir, "a folder")):
        for path in (folder / name for name in names):
            if lexists(path) and not fine(path):
                raise InputError("out", str(path), f"it is not {what}, which will be written there: move or remove it")


def make_place(file: Path) -> None:
    """Make the folder of a file that will be written, before the work; refuse a place where it cannot be."""
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    check_places(file.parent, (file.name,))


def check_unused(path: Path, *, folder: bool = False) -> None:
    """Refuse a place to write to where something is, but for an empty folder where a `folder` will be."""
    with disk_errors(path):
        if path.exists() and not (folder and path.is_dir() and not any(path.iterdir())):
            raise InputError(
                "out",
                str(path),
                "it is a file, or a folder that is not empty: choose another"
                if folder
                else "it exists: choose another file",
            )


def sync(path: Path) -> None:
    """fsync a file or directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically."""
    with disk_errors(path):
        sweep_old(path.parent)
        handle, name = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def new_folder(path: Path, *, fresh: bool = False) -> Generator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and is gone when it does not.

    With `fresh` nothing may be there but an empty folder. A kill between taking the old folder away and putting the new
    one there is mended by `sweep`.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_old(path.parent)
        work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
        old = path.with_name(OLD + path.name)
        try:
            yield work
            for file in work.rglob("*"):
                sync(file)
            os.chmod(work, 0o755)
            sync(work)
            if path.exists() and not fresh:
                os.replace(path, old)
            os.rename(work, path)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        sync(path.parent)
        with suppress(OSError):
            remove(old)


def sweep(folder: Path) -> None:
    """Put back or remove what a killed writer left behind."""
    for old in folder.glob(OLD + "*"):
        target = folder / old.name.removeprefix(OLD)
        if target.exists() or old.is_symlink():
            remove(old)
        else:
            os.replace(old, target)
    for leftover in folder.glob(PREFIX + "*"):
        remove(leftover)


def sweep_old(folder: Path) -> None:
    """Remove what killed writers left in a folder that others may be writing into now: what is older than a day."""
    for leftover in folder.glob(PREFIX + "*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > DAY:
                remove(leftover)


def remove(path: Path) -> None:
    """A file or a folder; of a link only the link."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
