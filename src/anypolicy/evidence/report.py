"""One static HTML page that works offline: text, tables, Plotly figures, samples."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anypolicy.runs.files import write_text

STYLE = """
:root { color-scheme: light; --line: #e3e6ea; --soft: #5c6670; --good: #00724f; --bad: #b34700; }
body { font: 16px/1.55 system-ui, sans-serif; color: #16191d; margin: 0; background: #fff; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .75rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .35rem 0; max-width: 46rem; } .soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: left; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); } .wide { overflow-x: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: .86rem/1.45 ui-monospace, monospace; }
.yes { color: var(--good); } .no { color: var(--bad); }
"""


@dataclass(frozen=True)
class Text:
    """Sentences, one paragraph each."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A heading, column names and rows."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """A Plotly figure under a heading."""

    heading: str
    figure: Any


@dataclass(frozen=True)
class Samples:
    """Prompts with a response before and after."""

    heading: str
    rows: Sequence[tuple[str, dict[str, Any], dict[str, Any]]]


@dataclass(frozen=True)
class Picture:
    """A PNG under a heading, held in the page itself."""

    heading: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Outline:
    """Indented lines under a heading."""

    heading: str
    text: str


Block = Outline | Text | Table | Figure | Samples | Picture


def write_report(path: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Write the page; everything it needs, Plotly's script included once, is in the file."""
    from plotly.offline import get_plotlyjs

    body = "\n".join(render(b, f"figure-{n}") for n, b in enumerate(blocks))
    script = f"<script>{get_plotlyjs()}</script>" if any(isinstance(b, Figure) for b in blocks) else ""
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>{script}</head>'
        f"<body><main><h1>{html.escape(title)}</h1>{body}</main></body></html>"
    )
    write_text(path, page)
    return path


def render(block: Block, name: str) -> str:
    """One block as HTML, a figure under this id; all text is escaped."""
    if isinstance(block, Text):
        return "".join(f"<p>{html.escape(line)}</p>" for line in block.lines)
    if isinstance(block, Outline):
        return f"<h2>{html.escape(block.heading)}</h2><div class=wide><pre>{html.escape(block.text)}</pre></div>"
    if isinstance(block, Table):
        head = "".join(f"<th>{html.escape(str(c))}</th>" for c in block.columns)
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in block.rows)
        return f"<h2>{html.escape(block.heading)}</h2><div class=wide><table><tr>{head}</tr>{rows}</table></div>"
    if isinstance(block, Picture):
        data, text = base64.b64encode(block.png).decode(), html.escape(block.caption)
        shown = f'<img alt="{text}" src="data:image/png;base64,{data}" style="max-width:100%">'
        return f"<h2>{html.escape(block.heading)}</h2>{shown}<p class=soft>{text}</p>"
    if isinstance(block, Figure):
        config = {"displaylogo": False, "responsive": True}
        chart = block.figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name)
        return f"<h2>{html.escape(block.heading)}</h2>{chart}"
    rows = "".join(
        f"<tr><td><pre>{html.escape(prompt)}</pre></td>{answer(before)}{answer(after)}</tr>"
        for prompt, before, after in block.rows
    )
    head = "<tr><th>prompt</th><th>before</th><th>after</th></tr>"
    return f"<h2>{html.escape(block.heading)}</h2><div class=wide><table>{head}{rows}</table></div>"


def answer(sample: dict[str, Any]) -> str:
    """A response with the verifier's verdict, or with its rewards where these are the user's own."""
    kind, word = ("yes", "correct") if sample.get("correct") else ("no", "wrong")
    if "rewards" in sample:
        each = ", ".join(f"{name} {value:.3g}" for name, value in sample["rewards"].items())
        kind, word = "of", f"reward {sample['reward']:.3g} ({html.escape(each)})" if each else "no reward"
    return f"<td><pre>{html.escape(str(sample.get('response', '')))}</pre><span class={kind}>{word}</span></td>"
