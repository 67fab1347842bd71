"""JSON lines that people write: every mistake is named with its line."""

from __future__ import annotations

from collections.abc import Iterator
from os.path import isfile
from pathlib import Path
from typing import Any

from anypolicy.data.readers import parsed
from anypolicy.errors import InputError
from anypolicy.runs.objects import given, is_object
from anypolicy.runs.strict_json import json_text


def json_lines(path: str, wanted: str, field: str = "task") -> Iterator[tuple[str, dict[str, Any]]]:
    """("line n", object) of every line that is not blank; `wanted` says what an object must hold."""
    if is_object(path):
        yield from ((f"row {n}", row) for n, row in enumerate(given(field, path)))
        return
    file = Path(path)
    if not isfile(path):
        raise InputError(field, path, "there is no such file")
    if not file.stat().st_size:
        raise InputError(field, path, "the file is empty")
    for n, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = parsed(line)
        except UnicodeDecodeError as error:
            raise InputError(path, f"line {n}", f"it is not UTF-8 ({error}): save the file as UTF-8") from error
        except ValueError as error:
            raise InputError(path, f"line {n}", f"it is not JSON ({error}): mend or remove it") from error
        if not isinstance(row, dict):
            raise InputError(path, f"line {n}", f"it must be an object with {wanted}")
        if b"\\u" in line and half(row):
            raise InputError(path, f"line {n}", "it has half a surrogate pair (\\ud800 … \\udfff alone), which is no "
                             "character: mend or remove it")  # fmt: skip
        yield f"line {n}", row


def half(row: dict[str, Any]) -> bool:
    """Whether a text in it cannot be written as UTF-8."""
    try:
        json_text(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
