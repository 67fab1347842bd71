"""A paper's central claim at small scale."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path

from anypolicy.errors import InputError, checked
from anypolicy.evidence.claims import Verdict, run_claim

CHECKOUT = Path(__file__).resolve().parents[3]
"""Where this package comes from, if it is installed from a checkout."""


@checked
def reproduce(
    slug: str, *, seeds: int | None = None, workers: int = 1, claims: str | Path | None = None, trust: bool = False,
    keep: bool = False,
) -> Verdict:  # fmt: skip
    """Run a method's claim at laptop scale and judge it. Evidence goes to docs/evidence beside the claims folder. With
    `keep` the recorded runs stand, missing seeds are added and all is judged anew. A claim that merely lies in the
    working directory needs `trust`, unless the user has run it before."""
    folder = Path(claims) if claims else find_claims()
    path = folder / f"{slug.replace('-', '_')}.py"
    known = sorted(f.stem.replace("_", "-") for f in folder.glob("*.py"))
    if not isfile(path):
        raise InputError("method", slug, f"there are claims for {', '.join(known)}", choices=known)
    own = claims is not None or folder.resolve() == CHECKOUT / "claims"
    evidence = folder.parent / "docs" / "evidence"
    return run_claim(path, seeds=seeds, workers=workers, out=evidence, trust=trust or own, keep=keep)


def find_claims() -> Path:
    """The claims folder of the working directory or of the checkout this package is installed from."""
    for base in (Path.cwd(), CHECKOUT):
        if (base / "claims").is_dir():
            return base / "claims"
    raise InputError("claims", str(Path.cwd()), "run this in a checkout of anypolicy, or give --claims FOLDER")
