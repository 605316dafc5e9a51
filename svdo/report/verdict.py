"""What our figures say of a claim: group by group, on which side, by how much, from how many runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from . import render
from .evidence import Evidence, Planned
from .spec import Claim, Column
from .values import measure

TEST_IMAGES = 10_000  # of each of the data sets


class Word(Enum):
    """What is said of a claim in one group of rows."""

    HOLDS = "holds"
    FAILS = "**does not hold**"
    TIE = "undecided"

    @property
    def sign(self) -> str:
        """How the smaller figure that it expects stands to the larger one."""
        return {Word.HOLDS: "<", Word.FAILS: ">", Word.TIE: "≈"}[self]


class Once(Enum):
    """What a figure is a single one of."""

    RUN = "one run"
    MEASUREMENT = "measured once"


@dataclass(frozen=True)
class Side:
    """One figure of a claim: its mean at the digits shown, how it is written (empty until measured), its spread if known."""

    mean: float
    text: str
    std: float = 0.0
    once: Once | None = None


@dataclass(frozen=True)
class Judgement:
    """A claim in one group of rows: the word, how far ours are on its side, the published figures, and ours."""

    group: str
    word: Word
    margin: str
    published: str
    ours: str


@dataclass(frozen=True)
class Verdict:
    """What is said of a claim: a judgement for each group that is measured, of ``groups`` that it is made about.

    ``once`` says that all of it rests on single runs or measurements.
    """

    judgements: tuple[Judgement, ...]
    groups: int
    once: Once | None = None

    @property
    def word(self) -> Word | None:
        """The word where it is the same in all groups; None where it is not, or nothing is measured."""
        words = {judgement.word for judgement in self.judgements}
        return words.pop() if len(words) == 1 else None


def judge(evidence: Evidence, claim: Claim) -> Verdict:
    """The verdict on a claim, from the groups of rows that have what it names."""
    groups = dict.fromkeys(row.group for row, _ in evidence.rows if not claim.groups or row.group in claim.groups)
    both: list[tuple[str, Side, Side]] = []
    for group in groups:
        less, more = _measured(evidence, claim, claim.less, group), _measured(evidence, claim, claim.more, group)
        if less is not None and more is not None:
            both.append((group, less, more))
    known = [(group, less, more) for group, less, more in both if less.text and more.text]
    trained = [
        side.once
        for _, *pair in known
        for side, declared in zip(pair, (claim.less, claim.more), strict=True)
        if isinstance(declared, list)
    ]
    once = None
    if trained and all(trained):
        once = Once.RUN if Once.RUN in trained else Once.MEASUREMENT
    judgements = [_judged(evidence, claim, group, less, more, once is not None) for group, less, more in known]
    return Verdict(tuple(judgements), len(both), once)


def _judged(evidence: Evidence, claim: Claim, group: str, less: Side, more: Side, once: bool) -> Judgement:
    word = _word(less, more)
    ours = _compared(claim, less, more, word, once, _bound(evidence, claim, group) is not None)
    return Judgement(group, word, _margin(evidence, claim, group, less, more), _published(evidence, claim, group), ours)


def _column(evidence: Evidence, claim: Claim, side: Any = None) -> Column:
    """The column of one side's figures, or, where that is a number, of the other's."""
    key = next(each[1] for each in (side, claim.less, claim.more) if isinstance(each, list))
    return next(column for column in evidence.report.columns if column.key == key)


def _margin(evidence: Evidence, claim: Claim, group: str, less: Side, more: Side) -> str:
    """How far ours are on the claim's side: from each other, or from the published figure that the claim's bound stands for."""
    low, high, column, bound = less.mean, more.mean, _column(evidence, claim), _bound(evidence, claim, group)
    if bound is not None:
        low, high = (low, bound) if isinstance(claim.less, list) else (bound, high)
    if not math.isfinite(low + high):
        return ""
    if _unit(column):
        return f"{format(high - low, '+' + column.format)} points"
    return f"{high / low:.3g}×" if low > 0 else ""


def _bound(evidence: Evidence, claim: Claim, group: str) -> float | None:
    """The published figure that the claim's bound stands for, to its last digit; None where there is no such bound."""
    for bound, side in ((claim.less, claim.more), (claim.more, claim.less)):
        published = None if isinstance(bound, list) else _quoted(evidence, side, group)
        if published is not None and abs(bound - published) < 0.51 * 10.0 ** -len(f"{published:g}".partition(".")[2]):
            return published
    return None


def _compared(claim: Claim, less: Side, more: Side, word: Word, once: bool, published: bool) -> str:
    """Both sides with their order, or ours that is held against a published figure; a single run said where not all are."""
    told = ["" if once or side.once is not Once.RUN or "so far)" in side.text else " (1 run)" for side in (less, more)]
    first, second = less.text + told[0], more.text + told[1]
    if not published:
        return f"{first} {word.sign} {second}"
    return first if isinstance(claim.less, list) else second


def _word(less: Side, more: Side) -> Word:
    """Whether the first is below the second; a tie where they are no further apart than both spreads together.

    A ratio of a network with nothing left is neither.
    """
    if not math.isfinite(less.mean + more.mean):
        return Word.FAILS
    if abs(less.mean - more.mean) <= math.hypot(less.std, more.std):
        return Word.TIE
    return Word.HOLDS if less.mean < more.mean else Word.FAILS


def _measured(evidence: Evidence, claim: Claim, side: Any, group: str) -> Side | None:
    """Ours, written as nothing where it is not measured, with what stands beside it; None where the group has no such row."""
    column = _column(evidence, claim, side)
    if not isinstance(side, list):
        return Side(float(side), f"{side:g}{_unit(column)}")
    label, _, group = _place(side, group)
    items = next((items for row, items in evidence.rows if (row.group, row.label) == (group, label)), None)
    if items is None:
        return None
    found = measure(items, column)
    if found is None:
        return Side(0.0, "")
    part = f" ({found.n} of {len(items)} seeds so far)" if found.n < len(items) else ""
    trained = any(isinstance(item, Planned) for item in items)
    once = None if found.n > 1 else Once.RUN if trained else Once.MEASUREMENT
    std = _spread(evidence, column, group, found.means[0]) if once is Once.RUN else found.stds[0]
    single = f" (± {format(std, column.format)})" if once is Once.RUN and std > 0 else ""
    text = render.measured_text(found, column) + single + _unit(column) + part
    for other in evidence.report.columns:
        if other.key == claim.beside and (ratio := measure(items, other)):
            text += f" at {format(ratio.means[0], other.format)}×"
    return Side(float(format(found.means[0], column.format)), text, std, once)


def _spread(evidence: Evidence, column: Column, group: str, mean: float) -> float:
    """What a single run may be off by: the largest spread over seeds of a row beside it; the sampling error of a test error."""
    several = (measure(items, column) for row, items in evidence.rows if row.group == group)
    spreads = [found.stds[0] for found in several if found is not None and found.n > 1]
    sampling = [math.sqrt(mean * (100.0 - mean) / TEST_IMAGES)] if column.key == "test.error" else []
    return max([*spreads, *sampling], default=0.0)


def _unit(column: Column) -> str:
    return " %" * ("%" in column.label)


def _place(side: Any, group: str) -> tuple[str, str, str]:
    """Label, key and group of a figure."""
    label, key, *own = side
    return label, key, own[0] if own else group


def _published(evidence: Evidence, claim: Claim, group: str) -> str:
    """The figures published for it, compared as ours are."""
    less, more = (_quoted(evidence, side, group) for side in (claim.less, claim.more))
    if less is None or more is None:
        return ""
    column = _column(evidence, claim)
    texts = [f"{figure:g}{_unit(column)}" for figure in (less, more)]
    if not isinstance(claim.less, list) or not isinstance(claim.more, list):
        return texts[0 if isinstance(claim.less, list) else 1]
    if claim.beside:
        ratios = [_quoted(evidence, [side[0], claim.beside, *side[2:]], group) for side in (claim.less, claim.more)]
        texts = [text + f" at {ratio:.3g}×" * (ratio is not None) for text, ratio in zip(texts, ratios, strict=True)]
    word = Word.TIE if abs(less - more) <= column.reading else Word.HOLDS if less < more else Word.FAILS
    return f"{texts[0]} {word.sign} {texts[1]}"


def _quoted(evidence: Evidence, side: Any, group: str) -> float | None:
    """The published figure, or the number itself; None where there is none."""
    if not isinstance(side, list):
        return float(side)
    label, key, group = _place(side, group)
    found = (row.published.get(key) for row, _ in evidence.rows if (row.group, row.label) == (group, label))
    return next(found, None)
