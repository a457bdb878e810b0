"""One self-contained page that shows what the demo did: no script, no request, no file beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from twinmesh_client.runs import TrainingRun
from twinmesh_demo.learn import TITLES

_STYLE = """
:root { --ink:#1f2933; --soft:#5f6b7a; --line:#e3e8ee; --blue:#1f6feb; --paper:#fff; --page:#f5f7fa; }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.55 system-ui,"Segoe UI",sans-serif; }
main { max-width:1040px; margin:0 auto; padding:32px 20px 64px; }
h1 { font-size:26px; margin:0 0 4px; }
h2 { font-size:18px; margin:0 0 8px; }
p.lead { color:var(--soft); margin:0 0 24px; }
section, .tile { background:var(--paper); border:1px solid var(--line); border-radius:10px; }
section { padding:20px 22px; margin:0 0 18px; }
img { width:100%; height:auto; display:block; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(180px,1fr)); gap:12px; margin:0 0 18px; }
.tile { padding:14px 16px; }
.tile b { display:block; font-size:22px; font-variant-numeric:tabular-nums; }
.tile span { color:var(--soft); font-size:13px; }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th, td { text-align:right; padding:6px 10px; border-bottom:1px solid var(--line); }
th { color:var(--soft); font-weight:600; }
th:first-child, td:first-child { text-align:left; }
tr.won td { font-weight:600; }
.tag { background:#e7f0fe; color:var(--blue); border-radius:6px; padding:1px 7px; font-size:12px; }
pre { background:#0f1720; color:#e6edf3; border-radius:8px; padding:14px 16px; margin:0; overflow:auto;
      font-size:12.5px; line-height:1.5; }
.wide { overflow-x:auto; }
"""


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """Return the whole document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{"".join(parts)}</main></body></html>\n'
    )


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """Return a row of figures: (figure, what it is)."""
    cells = "".join(f'<div class="tile"><b>{escape(f)}</b><span>{escape(what)}</span></div>' for f, what in items)
    return f'<div class="tiles">{cells}</div>'


def picture(title: str, path: Path, words: str) -> str:
    """Return a section with a PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<section><h2>{escape(title)}</h2><p>{escape(words)}</p>"
        f'<img alt="{escape(title)}" src="data:image/png;base64,{data}"></section>'
    )


def model_table(title: str, words: str, run: TrainingRun) -> str:
    """Return a section with one row per family of a run."""
    naive = next((c.metrics.get("mae") for c in run.candidates if c.family == "SEASONAL_NAIVE"), None)
    body = []
    for candidate in run.candidates:
        m = candidate.metrics
        won = candidate.model_version != 0 and candidate.model_version == run.promoted_version
        mae = m.get("mae", float("nan"))
        gain = f"{100 * (mae / naive - 1):+.0f} %" if naive and candidate.family != "SEASONAL_NAIVE" else ""
        name = escape(TITLES.get(candidate.family, candidate.family.lower()))
        body.append(
            f'<tr class="{"won" if won else ""}"><td>{name} {"<span class=tag>promoted</span>" if won else ""}</td>'
            f"<td>{mae:.2f}</td><td>{gain}</td><td>{_share(m.get('coverage'))}</td>"
            f"<td>{_number(m.get('worst_day_mae'))}</td><td>{_number(m.get('train_seconds'))}</td></tr>"
        )
    return (
        f"<section><h2>{escape(title)}</h2><p>{escape(words)}</p><div class=wide><table><tr><th></th><th>MAE, K</th>"
        "<th>against naive</th><th>80 % band covers</th><th>worst day, K</th><th>training, s</th></tr>"
        f"{''.join(body)}</table></div></section>"
    )


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a section with a plain table."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<section><h2>{escape(title)}</h2><div class=wide><table><tr>{top}</tr>{body}</table></div></section>"


def listing(title: str, text: str) -> str:
    """Return a section with preformatted text."""
    return f"<section><h2>{escape(title)}</h2><pre>{escape(text)}</pre></section>"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
