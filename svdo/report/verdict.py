"""What our figures say of a claim: group by group, on which side, by how much, from how many runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from . import render
from .evidence import Evidence, Planned
from .intervals import half_width
from .spec import Claim, Column
from .values import Measured, measure


class Word(Enum):
    """What is said of a claim in one group of rows."""

    REPLICATES = "replicates"
    BETTER = "better"
    AS_GOOD = "as good"
    WORSE = "**worse**"
    DIFFERS = "**differs**"
    HOLDS = "holds"
    FAILS = "**does not hold**"
    OPEN = "open"
    CONFOUNDED = "confounded"
    NOT_COMPARABLE = "not comparable"


class Order(Enum):
    """How the figure that a claim expects to be smaller stands to the larger one, as far as their intervals tell."""

    BELOW = "<"
    ABOVE = ">"
    ALIKE = "≈"


class Once(Enum):
    """What a figure is a single one of."""

    RUN = "one run"
    MEASUREMENT = "measured once"


@dataclass(frozen=True)
class Side:
    """One figure of a claim: its mean at the digits shown, how it is written (empty until measured), half its interval."""

    mean: float
    text: str
    half: float = 0.0
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
    order, bound = _order(less, more), _bound(evidence, claim, group)
    ours = _compared(claim, less, more, order, once, bound is not None)
    word = (
        _word(claim, order, claim.ours or not evidence.report.paper)
        if bound is None
        else _against(claim, order, bound, less, more)
    )
    return Judgement(group, word, _margin(evidence, claim, group, less, more), _published(evidence, claim, group), ours)


def setting(claim: Claim) -> str:
    """One of ``SETTINGS``: the declared one, or by the rows that it names."""
    labels = [str(side[0]) for side in (claim.less, claim.more) if isinstance(side, list)]
    return claim.setting or ("same" if any("authors'" in label for label in labels) else "schedule")


UNLIKE = {"other": Word.NOT_COMPARABLE, "confounded": Word.CONFOUNDED}


def _word(claim: Claim, order: Order, own: bool) -> Word:
    """Of a claim, our own or a paper's, about two figures of ours, or a bound that nobody published."""
    if order is Order.ALIKE:
        return Word.OPEN
    if own:
        words = {Order.BELOW: Word.HOLDS, Order.ABOVE: Word.FAILS}
    else:
        words = {Order.BELOW: Word.REPLICATES, Order.ABOVE: Word.DIFFERS}
    return UNLIKE.get(setting(claim), words[order])


def _against(claim: Claim, order: Order, published: float, less: Side, more: Side) -> Word:
    """Of a claim about a published figure: within the interval of ours and half of its last digit, or to which side of it."""
    ours, bound = (less, more) if isinstance(claim.less, list) else (more, less)
    made = setting(claim)
    if made in UNLIKE:
        return UNLIKE[made]
    within = abs(ours.mean - published) <= ours.half + abs(bound.mean - published)
    if made == "same":
        return Word.REPLICATES if within else Word.DIFFERS
    if within:
        return Word.AS_GOOD
    return Word.BETTER if order is Order.BELOW else Word.WORSE


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


def _compared(claim: Claim, less: Side, more: Side, order: Order, once: bool, published: bool) -> str:
    """Both sides with their order, or ours that is held against a published figure; a single run said where not all are."""
    told = ["" if once or side.once is not Once.RUN or "so far)" in side.text else " (1 run)" for side in (less, more)]
    first, second = less.text + told[0], more.text + told[1]
    if not published:
        return f"{first} {order.value} {second}"
    return first if isinstance(claim.less, list) else second


def _order(less: Side, more: Side) -> Order:
    """Which is smaller, or alike where they are no further apart than both intervals together.

    A ratio of a network with nothing left is neither, and counts against the claim.
    """
    if not math.isfinite(less.mean + more.mean):
        return Order.ABOVE
    if abs(less.mean - more.mean) <= math.hypot(less.half, more.half):
        return Order.ALIKE
    return Order.BELOW if less.mean < more.mean else Order.ABOVE


def _measured(evidence: Evidence, claim: Claim, side: Any, group: str) -> Side | None:
    """Ours, written as nothing where it is not measured, with what stands beside it; None where the group has no such row."""
    column = _column(evidence, claim, side)
    if not isinstance(side, list):
        return Side(float(side), f"{side:g}{_unit(column)}")
    label, _, group = _place(side, group)
    row, items = next(((row, items) for row, items in evidence.rows if (row.group, row.label) == (group, label)), (None, []))
    if row is None:
        return None
    found = measure(items, column)
    if found is None:
        return Side(0.0, "")
    part = f" ({found.n} of {len(items)} seeds so far)" if found.n < len(items) else ""
    trained = any(isinstance(item, Planned) for item in items)
    once = None if found.n > 1 else Once.RUN if trained else Once.MEASUREMENT
    half = half_width(evidence, row, items, column, found)
    mean = render.measured_text(Measured(found.means, (0.0,) * len(found.means), 1), column)
    text = mean + (f" ± {format(half, column.format)}" if half else "") + _unit(column) + part
    for other in evidence.report.columns:
        if other.key == claim.beside and (ratio := measure(items, other)):
            text += f" at {format(ratio.means[0], other.format)}×"
    return Side(float(format(found.means[0], column.format)), text, half, once)


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
    order = Order.ALIKE if abs(less - more) <= column.reading else Order.BELOW if less < more else Order.ABOVE
    return f"{texts[0]} {order.value} {texts[1]}"


def _quoted(evidence: Evidence, side: Any, group: str) -> float | None:
    """The published figure, or the number itself; None where there is none."""
    if not isinstance(side, list):
        return float(side)
    label, key, group = _place(side, group)
    found = (row.published.get(key) for row, _ in evidence.rows if (row.group, row.label) == (group, label))
    return next(found, None)
