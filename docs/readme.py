"""Writes what README.md says of the claims anew from docs/evidence: `make readme`."""

import re
from pathlib import Path

from anypolicy.evidence.claims import counted, table

ROOT = Path(__file__).parents[1]
EVIDENCE, README = ROOT / "docs" / "evidence", ROOT / "README.md"


def claims() -> str:
    """The counts and the table."""
    return f"Of {len(list(EVIDENCE.glob('[!.]*.json')))} claims: {counted(EVIDENCE)}.\n\n{table(EVIDENCE)}"


if __name__ == "__main__":
    begin, end = "<!-- claims: made by make readme -->\n", "<!-- end of claims -->"
    text = README.read_text()
    README.write_text(re.sub(f"(?<={begin}).*?(?={end})", lambda _: claims(), text, flags=re.DOTALL))
