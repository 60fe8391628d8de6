"""Numbers of things in messages."""

from __future__ import annotations


def counted(number: int, one: str) -> str:
    """``1 case``, ``2 cases``: a regular noun with its number.

    Args:
        number: how many.
        one: the noun for one of them, with adjectives in front.
    """
    return f"{number} {one}" if number == 1 else f"{number} {one}s"
