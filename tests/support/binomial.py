"""How often something of a given chance may happen, in exact arithmetic."""

from fractions import Fraction
from math import comb

RARE = Fraction(1, 10_000)  # a seed is fixed: what holds once holds always


def assert_frequency(happened: int, draws: int, chance: Fraction | float, rare: Fraction = RARE) -> None:
    """Fails where so few, or so many, of independent draws have less than `rare` / 2 of probability.

    chance: as it is written, so that 0.1 is a tenth.
    """
    exact = Fraction(str(chance)) if isinstance(chance, float) else chance
    yes, no, whole = exact.numerator, exact.denominator - exact.numerator, exact.denominator**draws

    def probability(counts: range) -> Fraction:
        return Fraction(sum(comb(draws, n) * yes**n * no ** (draws - n) for n in counts), whole)

    at_most, at_least = probability(range(happened + 1)), probability(range(happened, draws + 1))
    assert min(at_most, at_least) >= rare / 2, f"{happened} of {draws} at a chance of {exact}"
