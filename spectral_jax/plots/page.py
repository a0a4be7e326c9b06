"""A page of figures and tables in one HTML file: no script, no outside resource.

The same input gives the same bytes. Cells and parts are HTML, escaped by the caller; names,
captions and facts are plain text.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from spectral_jax.plots.style import to_svg


def page(title: str, parts: Sequence[str], *, style: str = "") -> str:
    """The page: a heading and its parts, in order; ``style`` adds to the house's own."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    return _PAGE.format(title=escape(title), style=_STYLE + style, body=body)


def picture(figure: Figure, caption: str, *, name: str) -> str:
    """A figure as inline SVG above the sentence a screen reader says; ``name`` is unique."""
    text = escape(caption)
    return (
        f"<figure role='img' aria-label='{text}'>{_inline(figure, name)}"
        f"<figcaption>{text}</figcaption></figure>"
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways where the page is narrow."""
    heading = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<div class='wide' tabindex='0'><table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def definitions(facts: Mapping[str, str]) -> str:
    """A list of names and what they are."""
    rows = (
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def _inline(figure: Figure, name: str) -> str:
    """The figure's SVG, its ids made unique on the page: two figures must not share a clip path."""
    svg = to_svg(figure)
    svg = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W+", "-", name).lower()
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --line: #d5d5d5; --soft: #666; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #161616; --line: #3a3a3a; --soft: #a5a5a5; }
  figure svg { background: #fff; border-radius: 4px; }
}
body { margin: 0; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.lead { font-size: 1.1rem; max-width: 48rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
caption { text-align: left; color: var(--soft); padding: .4rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; }
.badge { display: inline-block; padding: .05rem .45rem; border-radius: .7rem; font-size: .75rem;
  font-weight: 600; white-space: nowrap; color: #fff; background: #666; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .85rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { .wide { overflow: visible; } figure, tr { break-inside: avoid; } }
"""
