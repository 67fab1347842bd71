"""Writes what README.md says of the claims anew from docs/evidence: `make readme`."""

import json
import re
from pathlib import Path

from anypolicy.evidence.claims import counted, table

ROOT = Path(__file__).parents[1]
EVIDENCE, README = ROOT / "docs" / "evidence", ROOT / "README.md"


def waiting() -> int:
    """How many undecided claims lack nothing but seeds."""
    known = [json.loads(path.read_bytes())["checks"] for path in EVIDENCE.glob("[!.]*.json")]
    reasons = [[c["why"] for c in checks if c["core"] and c["verdict"] == "undecided"] for checks in known]
    return sum(bool(whys) and all(why.startswith("needs") for why in whys) for whys in reasons)


def claims() -> str:
    """The counts and the table."""
    why = f"Of the undecided ones {waiting()} lack nothing but seeds: shares are decided by ten, and have fewer."
    return f"Of {len(list(EVIDENCE.glob('[!.]*.json')))} claims: {counted(EVIDENCE)}.\n{why}\n\n{table(EVIDENCE)}"


if __name__ == "__main__":
    begin, end = "<!-- claims: made by make readme -->\n", "<!-- end of claims -->"
    text = README.read_text()
    README.write_text(re.sub(f"(?<={begin}).*?(?={end})", lambda _: claims(), text, flags=re.DOTALL))
