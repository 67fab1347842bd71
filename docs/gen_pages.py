"""Pages made from the code: one per method (card, header, settings, evidence, source), the list, the log names."""

import inspect
import json
from pathlib import Path

import mkdocs_gen_files

from anypolicy import catalogue
from anypolicy.evidence.claims import Judged, counted
from anypolicy.evidence.claims import table as table_of_claims
from anypolicy.evidence.stats import Interval
from anypolicy.runs.metrics import NAMES

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence"
METHODS = catalogue.methods(None)


def page(slug: str, m: catalogue.Method) -> str:
    """The page of one method."""
    card = m.card
    lines = [
        f"# {slug}",
        "",
        f"**{card.title}** · {card.paper} · {card.year}",
        "",
        card.idea[0].upper() + card.idea[1:] + ".",
        "",
    ]
    lines += [f"- changes: {', '.join(card.changes) or 'no stage of another method: it stands alone'}"]
    lines += [f"- composes with: {card.composes_with}", f"- claim: {card.claim}"]
    if card.example:
        lines += [f"- try: `{card.example}` ({card.look_at})"]
    lines += [f"- `{own}` does not go with `{other}`: {why}" for (own, other), why in card.conflicts.items()]
    lines += ["", "```text", m.header, "```", "", "## Settings", ""]
    lines += [inspect.getdoc(m.build) or "", "", "| option | default | meaning | range |", "|---|---|---|---|"]
    for k, p in m.knobs.items():
        knob = m.meanings[k]
        lines.append(f"| `--{slug}.{k.replace('_', '-')}` | `{p.default}` | {knob.meaning} | {knob.limits} |")
    for name in claims_of(slug):
        lines += evidence(name, json.loads((EVIDENCE / f"{name}.json").read_text()))
    return "\n".join([*lines, "", "## The whole file", "", "```python", m.source, "```", ""])


def claims_of(slug: str) -> list[str]:
    """The measured claims of a method: its own, and further ones that begin with its name (`props-cartpole`)."""
    further = [path.stem for path in sorted(EVIDENCE.glob(f"{slug}-*.json"))]
    return [x for x in (slug, *further) if (EVIDENCE / f"{x}.json").exists() and (x == slug or x not in METHODS)]


def evidence(slug: str, e: dict) -> list[str]:
    """What `anypolicy reproduce` measured, at which scale, what was amended, and where the numbers come from."""
    lines = ["", f"## Evidence: {slug}", "", f"{e['claim']}: **{e['verdict']}** over {e['seeds']} seeds.", ""]
    lines += [e["note"][:1].upper() + e["note"][1:] + ".", ""] if e["note"] else []
    if (EVIDENCE / f"{slug}.svg").exists():
        first = e["provenance"][0]["seeds"]
        fewer = len(first) < e["seeds"] and not any("curve" in runs[0] for runs in e["runs"].values())
        lines += [f"![learning curves](../evidence/{slug}.svg)", ""]
        lines += [f"The figure is of the first {len(first)} seeds.", ""] if fewer else []
    lines += ["| check | kind | expected | refuted at | measured | verdict |", "|---|---|---|---|---|---|"]
    for c in e["checks"]:
        judged = Judged(**c | {"measured": Interval(**c["measured"])})
        note = "" if c["core"] else " (reported)"
        against = "" if c["refuted"] is None else f"{c['refuted']:g}"
        why = f" ({c['why']})" if c["why"] else ""
        cells = (c["name"] + note, c["kind"], c["expected"], against, judged.shown(), c["verdict"] + why)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Scope:", "", "```text", e["scope"], "```", "", "Amendments:", ""]
    lines += [f"- {a['when']}, {a['looked']}: {a['what']} ({a['why']})" for a in e["amendments"]] or ["- none"]
    lines += ["", "Provenance:", ""]
    lines += [
        "| seeds | date | commit | claim | sources | machine | processor | versions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in e["provenance"]:
        seeds = f"{p['seeds'][0]}–{p['seeds'][-1]}"
        spent = "not recorded" if p["processor_seconds"] is None else f"{p['processor_seconds']:.0f} s"
        versions = ", ".join(f"{k} {v}" for k, v in p["versions"].items())
        known = (
            str(p["commit"])[:10],
            p["claim_sha256"][:10],
            p["sources_sha256"][:10],
            p["machine"] or "not recorded",
        )
        cells = (seeds, p["date"], *known, spent, versions)
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"[How a verdict comes about](../evidence.md). `anypolicy reproduce {slug}` runs it again; every number of "
        f"every run is in `docs/evidence/{slug}.json`.",
    ]


def write(path: str, text: str) -> None:
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)


table = ["# Methods", "", "| method | paper | year | changes | idea | evidence |", "|---|---|---|---|---|---|"]
for slug, m in METHODS.items():
    path = EVIDENCE / f"{slug}.json"
    verdict = json.loads(path.read_text())["verdict"] if path.exists() else "—"
    changes = ", ".join(m.card.changes) or "—"
    table.append(f"| [{slug}]({slug}.md) | {m.card.paper} | {m.card.year} | {changes} | {m.card.idea} | {verdict} |")
    write(f"methods/{slug}.md", page(slug, m))
write("methods/index.md", "\n".join(table) + "\n")

names = [
    "# Log names",
    "",
    "Every row of `metrics.jsonl`, and so every tracker, uses these names.",
    "",
    "| name | meaning |",
    "|---|---|",
]
names += [f"| `{name}` | {meaning} |" for name, meaning in NAMES.items()]
for slug, m in METHODS.items():
    names += [f"| `{name}` | {meaning} ({slug}) |" for name, meaning in m.card.metrics.items()]
write("metrics.md", "\n".join(names) + "\n")
shown = ["# Claims", "", f"Of {len(list(EVIDENCE.glob('*.json')))} claims: {counted(EVIDENCE)}. "
         "[How a verdict comes about](evidence.md).", "", table_of_claims(EVIDENCE)]  # fmt: skip
write("claims.md", "\n".join(shown))
write("add-a-method.md", (ROOT / "CONTRIBUTING.md").read_text())
