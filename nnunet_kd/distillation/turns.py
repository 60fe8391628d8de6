"""Whose turn it is, of several teachers, in an iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations, count


class Turns:
    """The teacher whose features an iteration reads: the next one in every iteration that reads any.

    Readers count in every so many iterations, one in every fifth for example, and then need not meet the same teacher again and
    again. So the order is moved by some places after each common period of all readers, where it would otherwise repeat. Over
    ``teachers`` such periods, every reader then meets every teacher equally often. It depends on the iteration alone, so a
    training that is continued goes on as if it had not stopped.

    Args:
        teachers: how many there are, at least 1.
        periods: of every reader: it reads in the iterations that this number divides. None: nobody reads.
    """

    def __init__(self, teachers: int, periods: Iterable[int]) -> None:
        everyone = sorted(set(periods)) or [1]
        self._teachers = teachers
        # an iteration of 10 is one of 5, too
        self._counted = [one for one in everyone if not any(one % other == 0 for other in everyone if other < one)]
        self._common = math.lcm(*everyone)
        in_common = self._read_before(self._common)
        self._moved = next(places for places in count() if math.gcd(in_common + places, teachers) == 1)

    def place(self, iteration: int) -> int:
        """Which teacher, from 0; ``iteration`` is counted from 0."""
        return (self._read_before(iteration) + self._moved * (iteration // self._common)) % self._teachers

    def _read_before(self, iteration: int) -> int:
        """How many iterations before this one any reader read in (inclusion and exclusion)."""
        return sum(
            (-1) ** (size + 1) * -(-iteration // math.lcm(*chosen))
            for size in range(1, len(self._counted) + 1)
            for chosen in combinations(self._counted, size)
        )
