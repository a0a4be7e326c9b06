"""A figure that moves, in one HTML file with everything in it: it plays offline."""

import json
from html import escape

import numpy as np
from matplotlib.axes import Axes

from spectral_jax.plots import page, style
from spectral_jax.plots.features import FeatureSpectra, panel_values, spectra_panels

_BLUE = style.OKABE_ITO[1]


@style.styled
def animated_spectra(
    spectra: FeatureSpectra, *, title: str = "Feature spectra", xlabel: str = "epoch"
) -> str:
    """`feature_spectra` one checkpoint after the other, as an HTML page to be written to a file.

    A slider (or its arrow keys) goes to a checkpoint, a button plays and pauses; the first
    checkpoint stays visible in grey. It does not begin to play where the reader's system asks for
    less motion, and without scripts the last checkpoint is shown.

    title: the page's heading.
    xlabel: what ``spectra.at`` counts.

    Raises:
        ValueError: arrays of the spectra do not belong together.
    """
    figure, axes = spectra_panels(spectra)
    count = len(spectra.at)
    for number, (ax, first, last) in enumerate(
        zip(axes, panel_values(spectra, 0), panel_values(spectra, count - 1), strict=True)
    ):
        k = np.arange(1, len(first) + 1)
        ax.plot(k, first, color="0.6", linewidth=1.2)
        ax.plot(k, last, color=_BLUE, linewidth=2, gid=f"moving-{number}")
    svg = style.to_svg(figure)  # also lays the figure out: `_path` needs to know where axes are
    height = figure.get_figheight() * figure.dpi
    frames = [
        [_path(ax, values, height) for ax, values in zip(axes, panel_values(spectra, place),
                                                         strict=True)]
        for place in range(count)
    ]  # fmt: skip
    told = [f"{xlabel} {at:g}" for at in np.asarray(spectra.at)]
    caption = f"Blue: the checkpoint that is named below. Grey: {told[0]}."
    shown = page.picture(svg, caption, name="spectra")
    data = json.dumps({"frames": frames, "told": told}).replace("</", "<\\/")
    controls = _CONTROLS.format(last=count - 1, now=escape(told[-1]))
    return page.page(title, [shown, controls, _SCRIPT.replace("DATA", data)], style=_STYLE)


def _path(ax: Axes, values: np.ndarray, height: float) -> str:
    """The line through the values, in the units of the SVG, whose y axis points down."""
    known = np.isfinite(values)
    k = np.arange(1, len(values) + 1)
    points = ax.transData.transform(np.stack([k[known], values[known]], axis=1))
    return "M" + "L".join(f"{x:.1f} {height - y:.1f}" for x, y in points) if len(points) else ""


_STYLE = """
figure svg { max-width: none; }
.controls { display: flex; gap: 1rem; align-items: center; }
.controls input { flex: 1; } .controls button { min-width: 5rem; font: inherit; }
"""

_CONTROLS = """<div class="controls">
<button id="play" type="button">Play</button>
<input id="at" type="range" min="0" max="{last}" value="{last}" aria-label="checkpoint">
<output id="now" for="at">{now}</output>
</div>"""

_SCRIPT = """<script>
const data = DATA;
const lines = [0, 1, 2].map(i => document.querySelector(`#spectra-moving-${i} path`));
const [play, at, now] = ["play", "at", "now"].map(id => document.getElementById(id));
let timer = null;
function show() {
  data.frames[at.value].forEach((path, i) => lines[i].setAttribute("d", path));
  now.value = data.told[at.value];
  at.setAttribute("aria-valuetext", now.value);
}
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
function start() {
  if (at.value === at.max) { at.value = 0; show(); }
  play.textContent = "Pause";
  timer = setInterval(() => {
    at.value = +at.value + 1;
    show();
    if (at.value === at.max) stop();
  }, Math.max(60, Math.min(500, 8000 / data.frames.length)));
}
play.onclick = () => timer ? stop() : start();
at.oninput = () => { stop(); show(); };
show();
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
</script>"""
