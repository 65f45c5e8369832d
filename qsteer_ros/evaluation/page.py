"""A self-contained HTML page: no script, no font, no file but itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

CSS = """
:root { --ink: #20242c; --soft: #5a6069; --line: #e1e4e8; --card: #ffffff; --page: #f6f6f3;
        --accent: #1c6fb5; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
       font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.12rem; margin: 0 0 4px; }
p { margin: 0 0 12px; color: var(--soft); max-width: 76ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
          padding: 20px 22px; margin: 18px 0; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
         margin: 20px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
        padding: 14px 16px; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.2; }
.tile span { color: var(--soft); font-size: 0.85rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
tr.total td { font-weight: 600; }
img, svg { max-width: 100%; height: auto; }
figure { margin: 0 0 14px; }
figcaption { color: var(--soft); font-size: 0.85rem; margin-top: 2px; }
details summary { cursor: pointer; color: var(--accent); margin-top: 8px; }
code { font-size: 0.86em; background: #eef0f2; border-radius: 4px; padding: 1px 5px; }
td.wrap { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.good { color: #1e7f53; } .bad { color: #b0392e; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(title: str, *parts: str, note: str = "") -> str:
    """A card with a heading and an explaining sentence."""
    explained = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{''.join(parts)}</section>"


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """(number, what it is) pairs, large."""
    cells = "".join(
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(what)}</span></div>'
        for number, what in entries
    )
    return f'<div class="tiles">{cells}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False) -> str:
    """A table of plain text; the last row is emphasised when it is a total."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for number, row in enumerate(rows):
        kind = ' class="total"' if total and number == len(rows) - 1 else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def facts(entries: Sequence[tuple[str, str]]) -> str:
    """Name and long value, one per line, broken where needed."""
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="wrap"><code>{escape(value)}</code></td></tr>'
        for name, value in entries
    )
    return f"<table>{rows}</table>"


def picture(data: bytes, kind: str, caption: str, *, width: int | None = None) -> str:
    """An image inside the page.

    Args:
        data: The file.
        kind: ``jpeg`` or ``webp``.
        caption: Text below it, and for those who cannot see it.
        width: Width on the page, pixels; default: its own.
    """
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    size = f' width="{width}"' if width else ""
    return (
        f'<figure><img src="{source}" alt="{escape(caption)}"{size}>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def folded(summary: str, *parts: str) -> str:
    """Parts that are shown on a click."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"
