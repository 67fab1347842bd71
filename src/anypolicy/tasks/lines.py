"""Files of rows that people have: every mistake is named with its line."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from os.path import isfile
from pathlib import Path
from typing import Any

from anypolicy.data.readers import first_line, parsed
from anypolicy.errors import InputError
from anypolicy.runs.objects import given, is_object
from anypolicy.runs.strict_json import json_text


def json_lines(path: str, wanted: str, field: str = "task") -> Iterator[tuple[str, dict[str, Any]]]:
    """("line n", row) of every row of a file, or of rows that were handed in; `wanted` says what a row must hold. JSON
    lines (blank ones left out; .gz is unpacked), a JSON list, a table of comma-separated values with a header (whose
    values are texts), or Parquet."""
    if is_object(path):
        yield from ((f"row {n}", row) for n, row in enumerate(given(field, path)))
        return
    file = Path(path)
    if not isfile(path):
        raise InputError(field, path, "there is no such file")
    if not file.stat().st_size:
        raise InputError(field, path, "the file is empty")
    read = next((r for ending, r in READERS.items() if path.endswith(ending)), lines)
    for where, row in read(path):
        if not isinstance(row, dict):
            raise InputError(path, where, f"it must be an object with {wanted}")
        yield where, row


def lines(path: str) -> Iterator[tuple[str, Any]]:
    """The values of lines of JSON."""
    unpack: Any = gzip.open if path.endswith(".gz") else open
    with unpack(path, "rb") as file, unpacked(path):
        for n, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"line {n}"
            row = value(path, where, line.removesuffix(b"\n"))
            if isinstance(row, dict) and b"\\u" in line and half(row):
                raise InputError(path, where, "it has half a surrogate pair (\\ud800 … \\udfff alone), which is no "
                                 "character: mend or remove it")  # fmt: skip
            yield where, row


def value(path: str, where: str, text: bytes) -> Any:
    """What JSON says."""
    try:
        return parsed(text)
    except UnicodeDecodeError as error:
        raise InputError(path, where, f"it is not UTF-8 ({error}): save the file as UTF-8") from error
    except ValueError as error:
        raise InputError(path, where, f"it is not JSON ({error}): mend or remove it") from error


@contextmanager
def unpacked(path: str) -> Generator[None]:
    """A file that is no whole archive is one error."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(path, "gzip", f"it cannot be unpacked ({error}): make it again") from error


def listed(path: str) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON list."""
    rows = value(path, "file", Path(path).read_bytes())
    if not isinstance(rows, list):
        raise InputError(path, "file", "it must hold a list of objects: write one, or a .jsonl file with one a line")
    yield from ((f"entry {n}", row) for n, row in enumerate(rows))


def table(path: str) -> Iterator[tuple[str, Any]]:
    """The rows of comma-separated values under their header, as texts."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    told = f"it has not as many values as the header ({', '.join(reader.fieldnames or ())}): mend it"
                    raise InputError(path, f"line {reader.line_num}", told)
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            told = f"it is no row of comma-separated values ({error}): mend it"
            raise InputError(path, f"line {reader.line_num}", told) from error
        except UnicodeDecodeError as error:
            told = f"it is not UTF-8 ({error}): save the file as UTF-8"
            raise InputError(path, f"after line {reader.line_num}", told) from error


def parquet(path: str) -> Iterator[tuple[str, Any]]:
    """The rows of a Parquet file, a batch in memory at a time."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError("task", path, "install pyarrow: pip install 'anypolicy[tasks]'") from error
    n = 0
    try:
        for batch in ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                yield f"row {n}", row
                n += 1
    except ArrowException as error:
        raise InputError(
            path, f"row {n}", f"it is no whole Parquet file ({first_line(error)}): make it again"
        ) from error


READERS = {".json": listed, ".csv": table, ".parquet": parquet}


def half(row: dict[str, Any]) -> bool:
    """Whether a text in it cannot be written as UTF-8."""
    try:
        json_text(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
