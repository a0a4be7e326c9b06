"""A page of figures and tables in one HTML file: no script, no outside resource.

The same input gives the same bytes. Cells and parts are HTML, escaped by the caller; names,
captions and facts are plain text.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from html import escape


def page(title: str, parts: Sequence[str], *, style: str = "") -> str:
    """The page: a heading and its parts, in order; ``style`` adds to the house's own."""
    body = "\n".join([f"<h1>{breakable(title)}</h1>", *parts])
    return _PAGE.format(title=escape(title), style=_STYLE + style, body=body)


def breakable(text: str) -> str:
    """The text as HTML in which a narrow screen may break long names behind ``.``, ``/`` and ``_``.

    >>> breakable("a.b < 0.5")
    'a.<wbr>b &lt; 0.5'
    """
    return re.sub(r"([./_])(?=[A-Za-z])", r"\1<wbr>", escape(text))


def picture(svg: str, caption: str, *, name: str, alternative: str = "") -> str:
    """A figure's SVG, as `to_svg` draws it, above its caption; ``name`` is unique on the page.

    ``alternative`` says what is to be seen there to those who cannot see it: the caption unless
    given. Where the page is narrow the figure scrolls sideways, as its letters would be too small.
    """
    image = _inline(svg, name).replace(
        "<svg", f"<svg role='img' aria-label='{escape(alternative or caption)}'", 1
    )
    return (
        f"<figure><div class='wide' tabindex='0' role='group' aria-label='figure'>{image}</div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Collection[int] = (),
) -> str:
    """A table that scrolls sideways where the page is narrow, with the ``numeric`` columns right.

    The first cell of a row is what the row is about: it stays in sight.
    """
    side = {column: " class='number'" for column in numeric}
    heading = "".join(
        f"<th scope='col'{side.get(column, '')}>{cell}</th>" for column, cell in enumerate(head)
    )
    body = "".join(f"<tr>{_row(row, side)}</tr>" for row in rows)
    return (
        f"<div class='wide' tabindex='0' role='group' aria-label='{escape(caption)}'><table>"
        f"<caption><span>{escape(caption)}</span></caption>"
        f"<thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str], side: Mapping[int, str]) -> str:
    first, *rest = cells
    others = (f"<td{side.get(i, '')}>{cell}</td>" for i, cell in enumerate(rest, start=1))
    return f"<th scope='row'{side.get(0, '')}>{first}</th>{''.join(others)}"


def definitions(facts: Mapping[str, str], *, anchor: str = "") -> str:
    """A list of names and what they are; a link to ``anchor`` and the name leads there."""
    rows = (
        f"<dt{_target(anchor, name)}>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def _target(anchor: str, name: str) -> str:
    return f" id='{escape(anchor + name)}'" if anchor else ""


def _inline(svg: str, name: str) -> str:
    """The SVG, its ids made unique on the page: two figures must not share a clip path."""
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
main { margin: 0 auto; padding: 1.5rem; }
/* Text in lines that can be read; a table as wide as it is, in the middle of the window. */
main > * { max-width: 68rem; margin-left: auto; margin-right: auto; }
main > .wide, main > details { max-width: 100%; width: fit-content; min-width: min(68rem, 100%); }
h1, h2 { overflow-wrap: break-word; line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.lead { font-size: 1.1rem; overflow-wrap: break-word; }
wbr { display: none; }
@media (min-width: 60rem) { .lead { box-sizing: border-box; padding-right: 20rem; } }
@media (max-width: 60rem) { wbr { display: inline; } }
ul.lead { padding-left: 1.2rem; } ul.lead li { margin: .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
caption { text-align: left; color: var(--soft); padding: .4rem 0; }
/* Read in lines of the window, whatever the width of the table that scrolls below it. */
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 3rem); }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; max-width: 40rem; } .number { text-align: right; }
th[scope=row] { font-weight: inherit; position: sticky; left: 0; background: var(--back); }
.badge { display: inline-block; padding: .05rem .45rem; border-radius: .7rem; font-size: .75rem;
  font-weight: 600; white-space: nowrap; color: #fff; background: #666; }
figure { margin-top: 1.5rem; margin-bottom: 1.5rem; }
figure svg { display: block; width: 100%; min-width: 40rem; max-width: 56rem; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .85rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print {
  figure svg { min-width: 0; } .wide { overflow: visible; } figure, tr { break-inside: avoid; }
}
"""
