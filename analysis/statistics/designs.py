"""What is independent in a comparison: trials, or crowds; and which of both sides are a pair.

A crowd is the students that share lessons. Beside their lessons, students of one seed have nothing in
common but first weights, which hardly matter: those of a crowd are exchangeable, not paired.
"""

from typing import NamedTuple

import pandas as pd

from analysis.statistics.ratio import FEWEST


class Design(NamedTuple):
    """How two sides are compared.

    `unit` is what n counts: "seeds" (each trial has lessons of its own), "lesson seeds" (means over
    crowds), or "students" (of too few lesson seeds to be a sample of lessons).
    """

    unit: str
    paired: bool
    lessons: frozenset[str]  # those that enter


def lessons_of(trials: pd.DataFrame) -> pd.Series:
    """The seed of each trial's lessons, as text: of its own where it shares none."""
    return trials["lessons"].where(trials["lessons"] != "", trials["seed"].astype(str))


def design(one: pd.Series, other: pd.Series) -> Design:
    """How two optimizers are compared, from the lessons of the trials of each (`lessons_of`).

    They are paired by lessons where they share those of at least three seeds (or where no trial shares
    lessons and both have the same). Otherwise they are independent: means over crowds where both have at
    least three, else students.
    """
    sides = frozenset(one), frozenset(other)
    shared = sides[0] & sides[1]
    crowded = one.duplicated().any() or other.duplicated().any()
    unit = "lesson seeds" if crowded else "seeds"
    if len(shared) >= FEWEST or (not crowded and shared and sides[0] == sides[1]):
        return Design(unit, paired=True, lessons=shared)
    if crowded and min(map(len, sides)) < FEWEST:
        unit = "students"
    return Design(unit, paired=False, lessons=sides[0] | sides[1])
