"""Numbers in few characters, for people."""

from __future__ import annotations

from math import isfinite

UNKNOWN = "unknown"
NONE = "-"


def amount(number: float) -> str:
    """A count in few characters: 940, 12.4k, 134.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if letter == 'k' else size):.1f}{letter}"
    return f"{number:,.0f}"


def size(num_bytes: float) -> str:
    """Bytes in few characters: 640 B, 12 KiB, 1.2 GiB."""
    for unit, letters in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= unit:
            value = num_bytes / unit
            return f"{value:.1f} {letters}" if value < 10 else f"{value:.0f} {letters}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Seconds in few characters: 8.2 s, 45 s, 12 m 30 s, 2 h 05 m."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def percent(share: float) -> str:
    """A share in percent, with one decimal."""
    if not isfinite(float(share)):
        return UNKNOWN
    return "under 0.1 %" if 0 < share < 0.0005 else f"{100 * share:,.1f} %"


def plain_number(value: float) -> str:
    """Four digits of a number of any size."""
    number = float(value)
    if not isfinite(number):
        return UNKNOWN
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e6 else f"{number:#.4g}".rstrip(".")


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, with three digits."""
    if seconds is None or not isfinite(float(seconds)):
        return NONE
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"
