"""How a command ends: its exit status, and one line for what went wrong or was stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable

from anypolicy.errors import InputError
from anypolicy.runs.output import lasting_output
from anypolicy.runs.stop import Stopped, in_order

REPEATED = {
    "compare": "stopped; the same command goes on: finished runs are kept, others resume from their last checkpoint",
    "reproduce": "stopped; the same command goes on: finished runs are kept, the others begin anew",
}
"""What a command says when it is stopped that is given again instead of resumed."""


def ended(name: str, command: Callable[[], object]) -> int:
    """Run a command; 0 if it worked, 2 for input that cannot be used, 128 + n where signal n stopped it. It goes on
    where nobody reads any more what it prints."""
    with lasting_output():
        try:
            with in_order():
                command()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            print(REPEATED.get(name) or str(stop) or "stopped; what was not finished is not kept", file=sys.stderr)
            return stop.code if isinstance(stop, Stopped) else 130
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 2
        finally:
            sys.stdout.flush()
        return 0
