"""What is printed while a run goes on: it may get lost, and then nothing else does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Lasting:
    """A stream that outlasts whoever reads it: what can no longer be written (a closed pipe, a full disk) is lost."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.tried(lambda: self.stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.tried(self.stream.flush)

    def tried(self, call: Callable[[], object]) -> None:
        """Do it if it can be done. A pipe that nobody reads leads nowhere from then on."""
        try:
            call()
        except BrokenPipeError:
            with suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
        except OSError:
            pass
        except ValueError:
            if not self.stream.closed:
                raise


@contextmanager
def lasting_output() -> Generator[None]:
    """Standard output and standard error that outlast their readers."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Lasting(stream)) if stream else stream for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
