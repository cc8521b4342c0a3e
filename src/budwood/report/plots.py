"""The drawings of a comparison as one PNG or PDF, for papers and slides: the page's geometry through matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from budwood.errors import BadConfig, NotAvailable, WrongOrder
from budwood.records.files import not_writable
from budwood.report.axes import AXES
from budwood.report.columns import say_quality
from budwood.report.curves import Curves, over_seconds, over_steps
from budwood.report.drawing import Scatter, Style, scatter
from budwood.report.table import Table

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "*")
"""As on the page, by `Style`."""
GREY, WARN, PALE = "#59625c", "#a6480f", "#d9ddd6"
INCHES = (6.2, 4.1)
"""Of one drawing."""
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
"""Behind names, so that lines do not cross them."""
KINDS = (".png", ".pdf")


def plots(table: Table, path: Path) -> Path:
    """Write all drawings of the page, two in a row, and return the path.

    Raises BadConfig for a file that is neither .png nor .pdf, or cannot be written; WrongOrder where there is nothing
    to draw yet; NotAvailable without budwood[plots].
    """
    if path.suffix.lower() not in KINDS:
        raise BadConfig(f"{path} is neither a .png nor a .pdf; name a file that ends in one of them")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotAvailable("plots need the package matplotlib: pip install 'budwood[plots]'") from error
    drawings = _drawings(table)
    if not drawings:
        raise WrongOrder("no two methods have a quality yet, and none a curve: wait for a second run to finish")
    rows = -(-len(drawings) // 2)
    figure = Figure(figsize=(2 * INCHES[0], rows * INCHES[1]), layout="constrained")
    figure.suptitle(_plain(table.title))
    for axes, draw in zip(figure.subplots(rows, 2, squeeze=False).flat, [*drawings, *[_nothing] * 2], strict=False):
        draw(axes)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise not_writable(path, error) from error
    return path


def _drawings(table: Table) -> list[Callable[[Any], None]]:
    name = table.metric.name.replace("_", " ") if table.metric else "quality"

    def say(value: float) -> str:
        return say_quality(table.metric, value)

    found = [scatter(table, axis, say) for axis in AXES]
    curves = [over_steps(table), over_seconds(table)]
    return [
        *(lambda axes, drawn=drawn: _scatter(axes, drawn, name) for drawn in found if drawn is not None),
        *(lambda axes, drawn=drawn: _curves(axes, drawn) for drawn in curves if drawn is not None),
    ]


def _scatter(axes: Any, drawn: Scatter, name: str) -> None:
    _frame(axes, drawn, drawn.axis.title + (" (logarithmic)" if drawn.is_log else ""), f"{name}, better upwards")
    if drawn.front:
        axes.plot(*zip(*drawn.front, strict=True), color=GREY, linewidth=1, zorder=1)
    if drawn.limit is not None:
        axes.axvline(drawn.limit.at, color=WARN, linestyle="--", linewidth=1)
        axes.text(drawn.limit.at, drawn.top, f" {_plain(drawn.limit.label)}", color=WARN, fontsize=8, va="top")
    for line, colour, style in ((drawn.floor, WARN, "--"), (drawn.base, GREY, ":")):
        if line is not None:
            axes.axhline(line.at, color=colour, linestyle=style, linewidth=1)
            axes.text(drawn.right, line.at - 3, _plain(line.label), color=colour, fontsize=8, ha="right")
    for spot in drawn.spots:
        if not spot.is_beyond:
            axes.vlines(spot.x, spot.low, spot.high, color=_colour(spot.style), linewidth=1.2)
        axes.plot(spot.x, spot.y, **_marker(spot.style), zorder=3)
        if spot.is_beyond:
            axes.annotate("", (spot.x, drawn.bottom), (spot.x, spot.y), arrowprops={"arrowstyle": "->", "color": GREY})
        if spot.label is not None:
            if spot.label.is_apart:
                axes.plot((spot.x, spot.label.x), (spot.y, spot.label.y), color=GREY, linewidth=0.4)
            side = "left" if spot.label.anchor == "start" else "right"
            axes.text(spot.label.x, spot.label.y, _plain(spot.label.text), fontsize=8, ha=side, va="center", bbox=PAPER)


def _curves(axes: Any, drawn: Curves) -> None:
    _frame(axes, drawn, drawn.axis + (" (logarithmic)" if drawn.is_log else ""), "loss, nats per target")
    for curve in drawn.curves:
        colour = _colour(curve.style)
        if curve.training:
            axes.plot(*zip(*curve.training, strict=True), color=colour, linewidth=0.7, alpha=0.4)
        if curve.held_out:
            axes.plot(*zip(*curve.held_out, strict=True), linewidth=1.4, **{**_marker(curve.style), "linestyle": "-"})
        label = curve.label
        axes.plot((label.from_x, label.x - 3), (label.from_y, label.y), color=GREY, linewidth=0.4, clip_on=False)
        axes.text(label.x, label.y, _plain(label.text), fontsize=8, va="center")


def _frame(axes: Any, drawn: Scatter | Curves, across: str, up: str) -> None:
    """Axes whose units are those of the page's drawing, so that everything lies where it lies there."""
    axes.set_xlim(drawn.left, drawn.right)
    axes.set_ylim(drawn.bottom, drawn.top)
    axes.set_xticks([tick.at for tick in drawn.across], [_plain(tick.label) for tick in drawn.across], fontsize=8)
    axes.set_yticks([tick.at for tick in drawn.up], [_plain(tick.label) for tick in drawn.up], fontsize=8)
    axes.set_xlabel(_plain(across))
    axes.set_ylabel(_plain(up))
    axes.grid(axis="y", color=PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _nothing(axes: Any) -> None:
    axes.set_axis_off()


def _marker(style: Style) -> dict[str, Any]:
    fill = "white" if style.colour < 0 else _colour(style)
    return {
        "marker": MARKERS[style.shape], "markersize": 7, "markerfacecolor": fill, "markeredgecolor": "#1d211e",
        "markeredgewidth": 0.6, "linestyle": "", "color": _colour(style),
    }  # fmt: skip


def _colour(style: Style) -> str:
    return GREY if style.colour < 0 else COLOURS[style.colour]


def _plain(text: str) -> str:
    """Without what matplotlib would read as mathematics, and letters that its font may lack."""
    return "".join(
        letter if letter == "…" or (letter.isascii() and letter.isprintable()) else "?" for letter in text
    ).replace("$", r"\$")
