"""Numbers and names of things in messages."""

from __future__ import annotations

from collections.abc import Collection

SHOWN = 5
"""Names in a message, before their number follows."""


def counted(number: int, one: str) -> str:
    """``1 case``, ``2 cases``: a regular noun with its number.

    Args:
        number: how many.
        one: the noun for one of them, with adjectives in front.
    """
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def some(names: Collection[str]) -> str:
    """``a, b, c, d, e and 7 more``: the first names in order, and how many follow."""
    shown = sorted(names)[:SHOWN]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
