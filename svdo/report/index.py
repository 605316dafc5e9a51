"""``results/README.md``: which claims of the papers held, which did not and by how much, and where each figure comes from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..runs import Record
from . import render, watch
from .collect import Evidence, Planned, measure, verdict
from .spec import Claim, Column

INTRODUCTION = """\
# What was measured

Which claims of two papers hold in our runs, and by how much; the documentation explains [models and
methods](../docs/methods.md).

- *Holds*: ours are on the claim's side by more than one spread (of two figures, the root of the sum of the squares of both ±),
  or reach a published bound to its last digit. *Does not hold*: they are on the other side by more than that. *Undecided* (≈):
  within. One spread is weak evidence: by chance alone, two equal methods differ by more one time in three.
- *By*: how far ours are on the claim's side, in points of percent or as a factor; under 0, or under 1×, they are on the other.
- *±*: standard deviation over seeds. *One run*: there are no seeds; (±) is the sampling error of a test error or, if larger,
  the spread over seeds of a row beside it. *Measured once*: a computation or a timing, or one network whose ± is a standard
  error. Without ± the verdict only says which figure is larger.
- *Reached*: a published figure that ours is at least as good as, at the digits shown. *Close*: ours is at most a tenth worse.
  *Short*: worse than that. *Open*: ours is not measured.
- *Recalled*: the published figure or claim is quoted from memory, as the papers' full text was not at hand.
- *Sparse VD*, of the LeNets, is by *our schedule* where nothing else is said: 60 epochs (LeNet-300-100) or 55, the KL weighted
  by more than 1 for a while, chosen on held-out images but for what [settings](settings.md) names. *Authors' schedule*: their
  script's 200 epochs. *Our recipe*, of VGG: augmented images, a dense start, a KL weight of 0.02."""
VERDICTS = """\
# How verdicts are made

The figure that the claim expects to be smaller stands first. A verdict is about these test images, on which the published
errors were measured, too.

- The spread of a single run: the largest of a row beside it, in brackets, and of a test error at least that of drawing 10 000
  test images (0.12 points at 1.5 %).
- A published figure counts as reached at its last digit: 68 from 67.5 on. Published figures that were read off a plot have a ≈
  where they are too close to be told apart. A bound beside ours that is no published figure is ours, or said in words.

`svdo-report render all` writes this page from the records in `runs/` and `measured/`."""
PAPERS = {
    "2017": "Variational Dropout Sparsifies Deep Neural Networks (Molchanov, Ashukha, Vetrov 2017)",
    "2015": "Variational Dropout and the Local Reparameterization Trick (Kingma, Salimans, Welling 2015)",
    "": "Claims of our own",
}
TABLES = """\
# Tables and figures

*Reached*, *close*, *short* and *open* are about distance, the verdicts above about order. An outcome is a run, or one row of a
measurement; hours are those of its training or measurement, on the clock."""
OURS = """\
No paper makes them, or theirs is about another machine, or has figures that could not be read."""
DISTANCES = ("reached", "close", "short", "open")
VARIATIONAL = ("sparsevd", "vd_a", "vd_a2", "vd_b")
HOLDS, FAILS, TIE, UNKNOWN = "holds", "**does not hold**", "undecided", "not measured yet"
ONE_RUN, ONE_MEASUREMENT = "one run", "measured once"
TEST_IMAGES = 10_000  # of each of the data sets
WORDS = {True: HOLDS, False: FAILS, None: TIE}
BREAK = "<br>"  # of a line within a cell
SIGNS = {True: "<", False: ">", None: "≈"}


@dataclass(frozen=True)
class Side:
    """One figure of a claim: its mean at the digits shown, how it is written (empty until measured), its spread if known."""

    mean: float
    text: str
    std: float = 0.0
    once: str = ""  # what it is a single one of, if it is


def page(reports: Sequence[Evidence]) -> dict[Path, bytes]:
    """The file, by its path."""
    reports = sorted(reports, key=lambda evidence: evidence.report.place)
    toy = ["# Toy settings: no figure here can be compared with anything"] * any(item.report.quick for item in reports)
    parts = [*toy, INTRODUCTION]
    for paper, title in PAPERS.items():
        claims = [(evidence, claim) for evidence in reports for claim in evidence.report.claims]
        asked = _claims([(e, c) for e, c in claims if paper == ("" if c.ours else e.report.paper)])
        if asked:
            of_paper = [evidence for evidence in reports if evidence.report.paper == paper]
            parts += [f"## {title}", *([OURS] if not paper else []), *_findings(of_paper)]
            parts += [*(_counts(of_paper) if paper else []), *asked, *_open(of_paper)]
    parts += [VERDICTS, TABLES]
    for evidence in reports:
        parts += [f"## {evidence.report.title}", _status(evidence)]
        for figure, _ in evidence.figures:
            path = f"figures/{figure.name}.png"
            if (evidence.results_dir / path).exists():
                parts += [f"![{figure.caption or evidence.report.title}]({path})"] + [figure.caption] * bool(figure.caption)
        parts += _trained_again(list({run.config.id: run for _, runs in evidence.figures for run in runs}.values()))
    return {reports[0].results_dir / "README.md": ("\n\n".join(parts) + "\n").encode()}


def _findings(reports: Sequence[Evidence]) -> list[str]:
    """What came out in words, table by table; toy settings do not bear it out."""
    found = [f"- {text} ({_link(evidence)})" for evidence in reports for text in evidence.report.findings]
    return ["In short:", "\n".join(found)] if found and not any(evidence.report.quick for evidence in reports) else []


def _counts(reports: Sequence[Evidence]) -> list[str]:
    """A sentence on the paper's figures: how many of its own methods and of others ours reach."""
    found = _verdicts(reports)
    own = {quoted: word for quoted, word in found.items() if quoted[1] in VARIATIONAL}
    others = {quoted: word for quoted, word in found.items() if quoted not in own}
    kinds = (("of variational dropout", own), ("of anything else", others))
    counted = "; ".join(f"{kind}, {_tally(words)}" for kind, words in kinds if words)
    said = "Published figures that ours can fall short of, each in the first row that quotes it, which may be by our schedule"
    return [f"{said}: {counted}."] if counted else []


def _claims(declared: Sequence[tuple[Evidence, Claim]]) -> list[str]:
    """The paper's claims: how many hold, which of them, by how much, and which are not measured."""
    claims = [(evidence, claim, *judged(evidence, claim)) for evidence, claim in declared]
    if not claims:
        return []
    made = [(evidence, claim, found) for evidence, claim, *found in claims if found[0] != UNKNOWN]
    rows = [[*found[:2], f"{claim.says} ({_link(evidence)})", *found[2:]] for evidence, claim, found in made]
    counted, verdicts = [], [found[0] for *_, found in made]
    for name, word in (("Hold", HOLDS), ("Do not hold", FAILS), ("Undecided", TIE), ("Not everywhere the same", BREAK)):
        alike = [said for said in verdicts if (BREAK if BREAK in said else said).startswith(word)]
        single = sum(ONE_RUN in said or ONE_MEASUREMENT in said for said in alike)
        counted.append(f"{name}: {len(alike)}" + f" ({single} by one run or measurement)" * bool(single))
    parts = [f"Claims: {len(claims)}, of which measured, some in part: {len(rows)}. {'. '.join(counted)}."]
    if rows:
        headers = ["verdict", "by", "claim (table)", "published", "ours"]
        parts.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    left = [f"- {claim.says} ({_link(evidence)})" for evidence, claim, word, *_ in claims if word == UNKNOWN]
    return parts + (["Not measured yet; the tables say how long that takes:", "\n".join(left)] if left else [])


def _open(reports: Sequence[Evidence]) -> list[str]:
    """A sentence on the tables that have outcomes without a figure, claimed about or not."""
    unmeasured = []
    for evidence in reports:
        made = [(row.group, item.record is not None) for row, items in evidence.rows for item in items]
        some = {group for group, done in made if done}
        empty = ", ".join(dict.fromkeys(group for group, _ in made if group not in some))
        count = [done for _, done in made].count(False)
        if count:
            unmeasured.append(f"{_link(evidence)} {count} of {len(made)}" + f" (all of {empty})" * bool(empty))
    said = "Outcomes of all rows, claimed about or not, that are not measured yet"
    return [f"{said}: {'; '.join(unmeasured)}."] if unmeasured else []


def judged(evidence: Evidence, claim: Claim) -> tuple[str, str, str, str]:
    """The verdict on it, by how much, the published figures, and ours that it rests on."""
    groups = list(dict.fromkeys(row.group for row, _ in evidence.rows if not claim.groups or row.group in claim.groups))
    sides = [
        (group, _measured(evidence, claim, claim.less, group), _measured(evidence, claim, claim.more, group))
        for group in groups
    ]
    both = [(group, less, more) for group, less, more in sides if less is not None and more is not None]
    known = [(group, less, more) for group, less, more in both if less.text and more.text]
    names = [f"{group}: " if len(both) > 1 else "" for group, _, _ in known]
    orders = [_order(less, more) for _, less, more in known]
    word = _word(orders, names) or UNKNOWN
    trained = [
        side.once
        for _, *pair in known
        for side, declared in zip(pair, (claim.less, claim.more), strict=True)
        if isinstance(declared, list)
    ]
    once = bool(trained) and all(trained)
    if once:
        word += (BREAK if BREAK in word else ", ") + (ONE_RUN if ONE_RUN in trained else ONE_MEASUREMENT)
    if 0 < len(known) < len(both):
        word += f" ({len(both) - len(known)} of {len(both)} {UNKNOWN})"
    quoted = [_published(evidence, claim, group) for group, _, _ in known]
    compared = [
        _compared(claim, less, more, order, once, _bound(evidence, claim, group) is not None)
        for (group, less, more), order in zip(known, orders, strict=True)
    ]
    margins = [_margin(evidence, claim, group, less, more) for group, less, more in known]
    columns = (margins, quoted, compared)
    by, published, ours = (BREAK.join(n + text for n, text in zip(names, texts, strict=True) if text) for texts in columns)
    return word, by, published, ours


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


def _compared(claim: Claim, less: Side, more: Side, order: bool | None, once: bool, published: bool) -> str:
    """Both sides with their order, or ours that is held against a published figure; a single run said where not all are."""
    told = ["" if once or side.once != ONE_RUN or "so far)" in side.text else " (1 run)" for side in (less, more)]
    first, second = less.text + told[0], more.text + told[1]
    if not published:
        return f"{first} {SIGNS[order]} {second}"
    return first if isinstance(claim.less, list) else second


def _order(less: Side, more: Side) -> bool | None:
    """Whether the first is below the second; None where they are no further apart than both spreads together.

    A ratio of a network with nothing left is neither.
    """
    if not math.isfinite(less.mean + more.mean):
        return False
    return None if abs(less.mean - more.mean) <= math.hypot(less.std, more.std) else less.mean < more.mean


def _word(held: Sequence[bool | None], names: Sequence[str]) -> str:
    """The verdict, group by group where it is not the same in all."""
    words = [WORDS[way] for way in held]
    return words[0] if len(set(words)) == 1 else BREAK.join(name + word for name, word in zip(names, words, strict=True))


def _measured(evidence: Evidence, claim: Claim, side: Any, group: str) -> Side | None:
    """Ours, written as nothing where it is not measured, with what stands beside it; None where the group has no such row."""
    column = _column(evidence, claim, side)
    if not isinstance(side, list):
        return Side(float(side), f"{side:g}{_unit(column)}")
    label, _, group = _place(side, group)
    for row, items in evidence.rows:
        if (row.group, row.label) == (group, label):
            found = measure(items, column)
            if found is None:
                return Side(0.0, "")
            part = f" ({found.n} of {len(items)} seeds so far)" if found.n < len(items) else ""
            once = ONE_RUN if any(isinstance(item, Planned) for item in items) else ONE_MEASUREMENT
            once *= found.n == 1
            std = _spread(evidence, column, group, found.means[0]) if once == ONE_RUN else found.stds[0]
            text = render.measured_text(found, column)
            text += f" (± {format(std, column.format)})" * (once == ONE_RUN and std > 0) + _unit(column) + part
            for other in evidence.report.columns:
                if other.key == claim.beside and (ratio := measure(items, other)):
                    text += f" at {format(ratio.means[0], other.format)}×"
            return Side(float(format(found.means[0], column.format)), text, std, once)
    return None


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
    return f"{texts[0]} {SIGNS[None if abs(less - more) <= column.reading else less < more]} {texts[1]}"


def _quoted(evidence: Evidence, side: Any, group: str) -> float | None:
    """The published figure, or the number itself; None where there is none."""
    if not isinstance(side, list):
        return float(side)
    label, key, group = _place(side, group)
    found = (row.published.get(key) for row, _ in evidence.rows if (row.group, row.label) == (group, label))
    return next(found, None)


def _trained_again(runs: Sequence[Planned]) -> list[str]:
    """A sentence for each network that figures look into and that is not its record's, having been trained again for them."""
    said = []
    for run in runs:
        seen, record = watch.load(run.config), run.record
        drawn = json.loads(str(seen["record"])) if seen and "record" in seen else None
        if drawn and record and drawn["test"] != record["test"]:
            error, ratio = drawn["test"]["error"], drawn["compression"]
            before = f"{record['test']['error']:.2f} %, {record['compression']:.1f}x"
            again = f"is from training it again, by other code or on other threads: {error:.2f} %, {ratio:.1f}x"
            said.append(f"What these figures show of `{run.config.id}` {again}, where its record has {before}.")
    return said


def _link(evidence: Evidence) -> str:
    return f"[{evidence.report.name}](tables/{evidence.report.name}.md)"


def _status(evidence: Evidence) -> str:
    """Where the table is, how much of it is measured, on what, and how its cells compare with the published ones."""
    outcomes = [item.record is not None for _, items in evidence.rows for item in items]
    judged_cells = _tally(_verdicts([evidence]))
    parts = [f"[Table](tables/{evidence.report.name}.md) ([tex](tables/{evidence.report.name}.tex),"]
    parts[0] += f" [csv](tables/{evidence.report.name}.csv)): {sum(outcomes)} of {len(outcomes)} outcomes measured"
    if judged_cells:
        parts.append(f"published figures: {judged_cells}")
    made = [record for run in evidence.runs if (record := run.record)]
    made += [evidence.measured] if evidence.measured else []
    if made:
        parts.append(_provenance(made))
    return "; ".join(parts) + "."


def _verdicts(reports: Sequence[Evidence]) -> dict[tuple[str, ...], str]:
    """How ours compares with each published figure (group, method, column, figure); several rows may quote the same."""
    found: dict[tuple[str, ...], str] = {}
    for evidence in reports:
        for row, items in evidence.rows:
            for column in evidence.report.columns:
                word = verdict(measure(items, column), column, row.published.get(column.key)) if items else ""
                if word:
                    method = next((item.config.method.name for item in items if isinstance(item, Planned)), row.label)
                    found.setdefault((row.group, method, column.key, str(row.published[column.key])), word)
    return found


def _tally(found: dict[tuple[str, ...], str]) -> str:
    words = list(found.values())
    return ", ".join(f"{words.count(word)} {word}" for word in DISTANCES if word in words)


def _provenance(records: Sequence[Record]) -> str:
    """When, on what, with which versions."""
    sources = [record["provenance"] for record in records]
    days = sorted({source["started"][:10] for source in sources})
    devices = sorted({re.sub(r", \d+ threads", "", source["device"]) for source in sources})
    threads = sorted({source["threads"] for source in sources if source["device"].startswith("cpu")})
    devices += [f"{' or '.join(map(str, threads))} thread{'s' * (threads != [1])}"] * bool(threads)
    precisions, versions = (sorted({source[key] for source in sources}) for key in ("precision", "torch"))
    seconds = sum(record["seconds"] for record in records)
    minutes = f"{seconds / 60:.1f} minutes" if seconds >= 60 else "under a minute"
    time = f"{seconds / 3600:.1f} hours" if seconds > 3600 else minutes
    parts = [*devices, *precisions, *(f"torch {version}" for version in versions)]
    return f"{time} on {', '.join(parts)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"
