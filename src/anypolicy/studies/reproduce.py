"""A paper's central claim at small scale."""

from __future__ import annotations

import shutil
from os.path import isfile
from pathlib import Path

from anypolicy.errors import InputError, checked
from anypolicy.evidence.claims import CHECKOUT, SHIPPED, Verdict, run_claim
from anypolicy.runs.files import check_places, disk_errors


@checked
def reproduce(
    slug: str, *, seeds: int | None = None, workers: int = 1, claims: str | Path | None = None, trust: bool = False,
    keep: bool = False,
) -> Verdict:  # fmt: skip
    """Run a method's claim at laptop scale and judge it. Evidence goes to docs/evidence beside the claims folder; of a
    claim that came with the installed package to evidence/ in the working directory, where what came with it stands
    first. With `keep` the recorded runs stand, missing seeds are added and all is judged anew. A claim that merely lies
    in the working directory needs `trust`, unless the user has run it before."""
    folder = Path(claims) if claims else find_claims()
    path = folder / f"{slug.replace('-', '_')}.py"
    known = sorted(f.stem.replace("_", "-") for f in folder.glob("*.py"))
    if not isfile(path):
        raise InputError("method", slug, f"there are claims for {', '.join(known)}", choices=known)
    own = claims is not None or folder.resolve() in (CHECKOUT / "claims", SHIPPED / "claims")
    evidence = folder.parent / "docs" / "evidence"
    if folder == SHIPPED / "claims":
        evidence = copied(slug, evidence, Path("evidence"))
    return run_claim(path, seeds=seeds, workers=workers, out=evidence, trust=trust or own, keep=keep)


def copied(slug: str, shipped: Path, place: Path) -> Path:
    """The place, with the evidence that came with the package where it has none of this claim."""
    check_places(place, (f"{slug}.json", f"{slug}.svg"))
    with disk_errors(place):
        place.mkdir(exist_ok=True)
        for file in shipped.glob(f"{slug}.*"):
            if not (place / file.name).exists():
                shutil.copyfile(file, place / file.name)
    return place


def find_claims() -> Path:
    """The claims folder of the working directory, of the checkout this package is installed from, or of the package."""
    for base in (Path.cwd(), CHECKOUT, SHIPPED):
        if (base / "claims").is_dir():
            return base / "claims"
    raise InputError("claims", str(Path.cwd()), "run this in a checkout of anypolicy, or give --claims FOLDER")
