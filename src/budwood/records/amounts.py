"""Numbers in few characters, for people."""

from __future__ import annotations


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
