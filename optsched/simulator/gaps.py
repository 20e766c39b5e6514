"""Note the gaps between tokens as they appear, so that nobody has to keep the tokens' times."""

from __future__ import annotations

import math

from optsched.compiled import lean
from optsched.domain.gaps import BINS_PER_E_FOLD, NUM_BINS, SHORTEST_S
from optsched.simulator.state import GapBook


@lean
def count_gaps(book: GapBook, gap_s: float, number: int) -> None:
    """Add so many equal gaps to the histogram of all."""
    if gap_s != book.latest_s[0]:
        book.latest_s[0] = gap_s
        book.latest_bin[0] = 0
        if gap_s > SHORTEST_S:
            book.latest_bin[0] = min(NUM_BINS - 1, int(math.log(gap_s / SHORTEST_S) * BINS_PER_E_FOLD))
    book.histogram[book.latest_bin[0]] += number
    book.total_s[0] += gap_s * number


@lean
def keep_gap(book: GapBook, turn: int, gap_s: float) -> bool:
    """Keep a gap among a turn's largest, if it is one of them; tell whether it was."""
    first, last = book.offset[turn], book.offset[turn + 1] - 1
    if gap_s <= book.largest_s[first]:
        return False
    position = first
    while position < last and book.largest_s[position + 1] < gap_s:
        book.largest_s[position] = book.largest_s[position + 1]
        position += 1
    book.largest_s[position] = gap_s
    return True


@lean
def keep_run(book: GapBook, turn: int, steps: int) -> None:
    """Keep the gaps of a run of steps, ``run_s[1:steps]``, among a turn's largest; they hardly ever shrink along the run."""
    kept = book.offset[turn + 1] - book.offset[turn]
    for step in range(steps - 1, max(0, steps - 1 - kept), -1):
        if not keep_gap(book, turn, book.run_s[step]):
            return
