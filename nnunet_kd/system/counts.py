"""Numbers and names of things in messages."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 5
"""Names in a message, before their number follows."""


def counted(number: int, one: str) -> str:
    """``1 case``, ``2 cases``: a regular noun with its number.

    Args:
        number: how many.
        one: the noun for one of them, with adjectives in front.
    """
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def some(names: Sequence[str], most: int = SHOWN, between: str = ", ") -> str:
    """``a, b, c, d, e and 7 more``: the first names in their order, and how many follow.

    Args:
        names: of things, or a phrase for each.
        most: that are shown.
        between: two of them.
    """
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
