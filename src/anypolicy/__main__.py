"""`anypolicy` and `python -m anypolicy`."""

import os
import sys


def main() -> int:
    """The command line as a process of its own. A Ctrl-C while it is still being loaded ends it quietly."""
    try:
        if "PYTHONHASHSEED" not in os.environ:
            # some generated data sets follow the order of Python's sets of text: the same in every process, then
            os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONHASHSEED": "0"})
        from anypolicy.cli import app

        return app.main(sys.argv[1:])
    except KeyboardInterrupt:
        print("stopped; nothing was done yet", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
