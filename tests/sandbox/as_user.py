"""Run all attacks as whoever this is; needs the standard library and a copy of the sandbox beside it."""

import json
import os
import re
import sys
from pathlib import Path

from attacks import ATTACKS

from anypolicy.sandbox import Limits, Program, run
from anypolicy.sandbox.scorers import Outcome, Scorer, door

given, backends = json.loads(sys.argv[1])
assert os.geteuid() != 0
assert Path(given["secret"]).read_text() == "secret"
limits, held = Limits(seconds=60, cpu_seconds=20, memory=256 << 20), 0
for backend in backends:
    honest = run(Program("print(input())", "ä\n"), limits, backend)
    assert honest.passed and honest.output == "ä\n", honest
    held += 1
    for name, (text, stopped_by) in ATTACKS.items():
        result = run(text.format(**given), limits, backend)
        assert result.verdict == "failed" and re.search(stopped_by, result.reason), (backend, name, result)
        held += 1
runs = Scorer("runs anything", (("runs", "def make():\n    return eval"),), isolated=True)
tries = [("1 + 1",), ("len(__import__('os').listdir('/home'))",), ("__import__('os')._exit(0)",)]
assert door.score(runs, tries) == [Outcome("scored", 2.0), Outcome("unreadable"), Outcome("ended")]
print(held, "held")
