"""Plots as SVG, drawn by hand: bars with spread, and curves. Pure: from figures to text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

INK: Final = "#1f2933"
FAINT: Final = "#9aa5b1"
GRID: Final = "#e4e7eb"
COLOURS: Final = {"FenceKV": "#0f766e", "etcd": "#7b8794", "Redis": "#d9a066"}
GOOD: Final = "#0f766e"
SHORT: Final = "#b44d3a"
FONT: Final = "font-family='system-ui, sans-serif'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A ratio, with the least that is wanted and what is aimed at. `lower`: less is better."""

    label: str
    median: float
    least: float
    most: float
    wanted: float
    aim: float
    lower: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Bars side by side: systems with (median, least, most)."""

    label: str
    systems: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A curve over seconds with its own scale."""

    title: str
    unit: str
    points: Sequence[tuple[float, float]]


def ticks(most: float, count: int = 5) -> list[float]:
    """Round values from 0 to at least `most`, about `count` steps."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def benchmarks(bars: Sequence[Bar], groups: Sequence[Group], *, caption: str) -> str:
    """Ratios above, operations a second below."""
    ratios_height = 70 + 34 * len(bars)
    height = ratios_height + (330 if groups else 0) + 30
    parts = [_ratios(bars)]
    if groups:
        parts.append(f"<g transform='translate(0 {ratios_height})'>{_groups(groups)}</g>")
    parts.append(_text(24, height - 12, caption, size=11, fill=FAINT))
    return _svg(980, height, parts)


def curves(title: str, several: Sequence[Curve], *, caption: str) -> str:
    """Curves below each other over one time axis."""
    height = 50 + 150 * len(several) + 40
    parts = [_text(24, 30, title, size=16, weight="600")]
    for at, curve in enumerate(several):
        parts.append(f"<g transform='translate(0 {50 + 150 * at})'>{_curve(curve)}</g>")
    parts.append(_text(24, height - 12, caption, size=11, fill=FAINT))
    return _svg(980, height, parts)


def _ratios(bars: Sequence[Bar]) -> str:
    left, width = 352, 500
    scale = ticks(max((max(bar.most, bar.aim) for bar in bars), default=1.0))
    high = scale[-1]
    bottom = 60 + 34 * len(bars)

    def x(value: float) -> float:
        return left + width * min(value, high) / high

    parts = [_text(24, 30, "FenceKV by its anchor, paired runs", size=16, weight="600")]
    for mark in scale:
        parts.append(_line(x(mark), 46, x(mark), bottom, GRID))
        parts.append(_text(x(mark), bottom + 14, f"{mark:g}x", size=11, fill=FAINT, anchor="middle"))
    for at, bar in enumerate(bars):
        top = 54 + 34 * at
        good = bar.median <= bar.wanted if bar.lower else bar.median >= bar.wanted
        colour = GOOD if good else SHORT
        sign = "less is better" if bar.lower else ""
        parts.append(_text(left - 10, top + 15, bar.label, size=12, anchor="end"))
        parts.append(
            f"<rect x='{left}' y='{top + 2}' width='{x(bar.median) - left:.1f}' height='17' fill='{colour}'/>"
        )
        parts.append(_line(x(bar.least), top + 10.5, x(bar.most), top + 10.5, INK, 1.5))
        parts += [_line(x(end), top + 7, x(end), top + 14, INK, 1.5) for end in (bar.least, bar.most)]
        parts.append(_line(x(bar.wanted), top - 2, x(bar.wanted), top + 23, INK, 2))
        parts.append(_line(x(bar.aim), top - 2, x(bar.aim), top + 23, INK, 1, dash="3 2"))
        right = max(x(bar.most), x(bar.aim), x(bar.wanted)) + 8
        parts.append(
            _text(right, top + 15, f"{bar.median:.2f}x {sign}".strip(), size=12, fill=colour, weight="600")
        )
    parts.append(_text(left + width, 30, "| at least    ┆ aim", size=11, fill=FAINT, anchor="end"))
    return "".join(parts)


def _groups(groups: Sequence[Group]) -> str:
    left, top, width, height = 70, 60, 800, 200
    scale = ticks(max((most for group in groups for _, _, most in group.systems.values()), default=1.0))

    def y(value: float) -> float:
        return top + height * (1 - value / scale[-1])

    parts = [_text(24, 34, "Operations a second, fsync before each acknowledgement", size=16, weight="600")]
    for mark in scale:
        parts.append(_line(left, y(mark), left + width, y(mark), GRID))
        parts.append(_text(left - 8, y(mark) + 4, f"{mark:,.0f}", size=11, fill=FAINT, anchor="end"))
    each = width / max(1, len(groups))
    for at, group in enumerate(groups):
        bar = min(34.0, (each - 16) / max(1, len(group.systems)))
        begin = left + each * (at + 0.5) - bar * len(group.systems) / 2
        for number, (system, (median, least, most)) in enumerate(group.systems.items()):
            x = begin + bar * number
            colour = COLOURS.get(system, FAINT)
            parts.append(
                f"<rect x='{x + 1:.1f}' y='{y(median):.1f}' width='{bar - 2:.1f}' "
                f"height='{top + height - y(median):.1f}' fill='{colour}'/>"
            )
            middle = x + bar / 2
            parts.append(_line(middle, y(least), middle, y(most), INK, 1.2))
            parts.append(_text(middle, y(most) - 5, _short(median), size=10, anchor="middle"))
        parts.append(_text(left + each * (at + 0.5), top + height + 18, group.label, size=12, anchor="middle"))
    named = dict.fromkeys(system for group in groups for system in group.systems)
    for number, system in enumerate(named):
        x = left + width - 90 * (len(named) - number)
        parts.append(f"<rect x='{x}' y='25' width='11' height='11' fill='{COLOURS.get(system, FAINT)}'/>")
        parts.append(_text(x + 16, 35, system, size=12))
    return "".join(parts)


def _curve(curve: Curve) -> str:
    left, top, width, height = 80, 22, 790, 95
    last = max((second for second, _ in curve.points), default=1.0) or 1.0
    scale = ticks(max((value for _, value in curve.points), default=1.0), 3)

    def place(second: float, value: float) -> str:
        return f"{left + width * second / last:.1f},{top + height * (1 - value / scale[-1]):.1f}"

    parts = [_text(left, 12, f"{curve.title} ({curve.unit})", size=12, weight="600")]
    for mark in scale:
        y = top + height * (1 - mark / scale[-1])
        parts.append(_line(left, y, left + width, y, GRID))
        parts.append(_text(left - 8, y + 4, f"{mark:,g}", size=11, fill=FAINT, anchor="end"))
    for mark in ticks(last, 6):
        if mark <= last:
            x = left + width * mark / last
            parts.append(_text(x, top + height + 15, f"{mark:g} s", size=10, fill=FAINT, anchor="middle"))
    line = " ".join(place(second, value) for second, value in curve.points)
    parts.append(f"<polyline points='{line}' fill='none' stroke='{GOOD}' stroke-width='1.4'/>")
    return "".join(parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
        f"width='{width}' height='{height}' {FONT}>\n"
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>\n{inside}\n</svg>\n"
    )


def _text(
    x: float, y: float, text: str, *, size: int, fill: str = INK, anchor: str = "start", weight: str = "400"
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{fill}' text-anchor='{anchor}' "
        f"font-weight='{weight}'>{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0, *, dash: str = "") -> str:
    dashed = f" stroke-dasharray='{dash}'" if dash else ""
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' "
        f"stroke-width='{width:g}'{dashed}/>"
    )


def _short(value: float) -> str:
    return f"{value / 1000:.1f} k" if value >= 1000 else f"{value:.0f}"
