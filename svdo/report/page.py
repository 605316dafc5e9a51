"""``results/README.md``: which claims of the papers held, which did not and by how much, and where each figure comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from ..runs import Record
from . import watch
from .distances import DISTANCES, distance
from .evidence import Evidence, Planned, method_of
from .spec import Claim
from .values import measure
from .verdict import UNLIKE, Verdict, Word, judge

HEAD = """\
# What was measured

Which claims of two papers hold in our runs; the documentation explains [methods](../docs/methods.md)."""
INTRODUCTION = """\
# How to read this page

- Beside a published figure: *replicates*, ours has the published setting and is no further from it than its 95 % interval;
  *differs*, the published setting, and further, on either side. By a schedule of our own, all else alike: *better*, *as good*
  (within the interval) or *worse*. *Not comparable*: another recipe. *Confounded*: something else than what is claimed may have
  made the difference.
- Of two figures of ours: *replicates*, ordered as the paper has them, further apart than their intervals allow; *differs*, the
  other way round; *open*, within the intervals. A claim of our own *holds* or *does not hold* instead.
- *By*: how far ours are on the claim's side, in points of percent or as a factor; under 0, or under 1×, they are on the other.
- *±*: half of a two-sided 95 % interval, by Student's t over seeds (in the tables, ± is one standard deviation). *One run* or
  *measured once*: there are no seeds. Without ± nothing tells an interval, and the verdict only says which figure is larger.
- *Reached*: a published figure that ours is at least as good as, at the digits shown. *Close*: ours is at most a tenth worse.
  *Short*: worse than that. *Open*, of a cell: ours is not measured.
- *Recalled*: the published figure or claim is quoted from memory, as the papers' full text was not at hand.
- *Sparse VD*, of the LeNets, is by *our schedule* where nothing else is said: 60 epochs (LeNet-300-100) or 55, the KL weighted
  by more than 1 for a while, chosen on held-out images but for what [settings](settings.md) names. *Authors' schedule*: their
  script's 200 epochs. *Our recipe*, of VGG: augmented images, a dense start, a KL weight of 0.02."""
VERDICTS = """\
# How verdicts are made

The figure that the claim expects to be smaller stands first. A verdict is about these test images, on which the published
errors were measured, too.

- The spread over seeds is pooled over the rows of a network that have the same method, or where none of those has several
  seeds, over all of them, of ratios relative to their means: three seeds alone say little about it. An interval of a test
  error is never narrower than drawing 10 000 test images makes it (0.24 points to each side at 1.5 %). Of two figures, the
  root of the sum of the squares of both ± counts.
- A published figure is known to half of its last digit; its own spread is not known and not counted. Published figures that
  were read off a plot have a ≈ where they are too close to be told apart. A bound beside ours that is no published figure is
  ours, or said in words.

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
UNKNOWN = "not measured yet"
WRONG = 0.05  # the share of comparisons that a 95 % interval decides wrongly where there is no difference
BREAK = "<br>"  # of a line within a cell


def page(reports: Sequence[Evidence]) -> dict[Path, bytes]:
    """The file, by its path."""
    reports = sorted(reports, key=lambda evidence: evidence.report.place)
    toy = ["# Toy settings: no figure here can be compared with anything"] * any(item.report.quick for item in reports)
    parts = [*toy, HEAD, *_first_screen(reports), INTRODUCTION]
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


def _first_screen(reports: Sequence[Evidence]) -> list[str]:
    """What came out, in lines, and the claims that have a headline; how many of all verdicts may be wrong by chance."""
    said = [] if any(evidence.report.quick for evidence in reports) else [text for e in reports for text in e.report.brief]
    rows = []
    for evidence in reports:
        for claim in evidence.report.claims:
            if claim.headline and (verdict := judge(evidence, claim)).judgements:
                word, _, _, published, ours = _row(evidence, claim, verdict)
                rows.append([f"{claim.headline} ({_link(evidence)})", published, ours, word])
    parts = ["\n".join(f"- {text}" for text in said)] if said else []
    if rows:
        parts.append(
            tabulate(rows, ["claim (table)", "published", "ours", "verdict"], tablefmt="github", disable_numparse=True)
        )
    return [*parts, *_by_chance(reports)]


def _by_chance(reports: Sequence[Evidence]) -> list[str]:
    """A sentence on how many comparisons there are, and how many of them chance alone may decide."""
    judgements = [each for e in reports for claim in e.report.claims for each in judge(e, claim).judgements]
    compared = [each for each in judgements if each.word not in UNLIKE.values()]
    if not compared:
        return []
    wrong = WRONG * len(compared)
    return [
        f"The claims on this page rest on {len(compared)} comparisons by 95 % intervals. Where two figures are truly alike, one"
        f" in 20 of them says otherwise by chance: up to about {wrong:.0f} in all. A verdict by one run is weak evidence."
    ]


def _findings(reports: Sequence[Evidence]) -> list[str]:
    """What came out in words, table by table; toy settings do not bear it out."""
    found = [f"- {text} ({_link(evidence)})" for evidence in reports for text in evidence.report.findings]
    return ["In short:", "\n".join(found)] if found and not any(evidence.report.quick for evidence in reports) else []


def _counts(reports: Sequence[Evidence]) -> list[str]:
    """A sentence on the paper's figures: how many of its own methods and of others ours reach."""
    found = _distances(reports)
    own = [word for quoted, word in found.items() if quoted.variational]
    others = [word for quoted, word in found.items() if not quoted.variational]
    kinds = (("of variational dropout", own), ("of anything else", others))
    counted = "; ".join(f"{kind}, {_tally(words)}" for kind, words in kinds if words)
    said = "Published figures that ours can fall short of, each in the first row that quotes it, which may be by our schedule"
    return [f"{said}: {counted}."] if counted else []


def _claims(declared: Sequence[tuple[Evidence, Claim]]) -> list[str]:
    """The paper's claims: how many hold, which of them, by how much, and which are not measured."""
    claims = [(evidence, claim, judge(evidence, claim)) for evidence, claim in declared]
    if not claims:
        return []
    made = [(evidence, claim, verdict) for evidence, claim, verdict in claims if verdict.judgements]
    verdicts = [verdict for *_, verdict in made]
    counted = []
    for word in (*Word, None):
        alike = [verdict for verdict in verdicts if verdict.word is word]
        single = sum(verdict.once is not None for verdict in alike)
        name = word.value.strip("*").capitalize() if word else "Not everywhere the same"
        if alike:
            counted.append(f"{name}: {len(alike)}" + f" ({single} by one run or measurement)" * bool(single))
    parts = [f"Claims: {len(claims)}, of which measured, some in part: {len(made)}. {'. '.join(counted)}."]
    if made:
        headers = ["verdict", "by", "claim (table)", "published", "ours"]
        rows = [_row(evidence, claim, verdict) for evidence, claim, verdict in made]
        parts.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    left = [f"- {claim.says} ({_link(evidence)})" for evidence, claim, verdict in claims if not verdict.judgements]
    return parts + (["Not measured yet; the tables say how long that takes:", "\n".join(left)] if left else [])


def _row(evidence: Evidence, claim: Claim, verdict: Verdict) -> list[str]:
    """The cells of a claim that is measured, group by group where there are several."""
    named = [f"{each.group}: " if verdict.groups > 1 else "" for each in verdict.judgements]

    def cell(texts: Iterable[str]) -> str:
        return BREAK.join(name + text for name, text in zip(named, texts, strict=True) if text)

    word = verdict.word.value if verdict.word else cell(each.word.value for each in verdict.judgements)
    if verdict.once:
        word += (", " if verdict.word else BREAK) + verdict.once.value
    if missing := verdict.groups - len(verdict.judgements):
        word += f" ({missing} of {verdict.groups} {UNKNOWN})"
    columns = zip(*((each.margin, each.published, each.ours) for each in verdict.judgements), strict=True)
    by, published, ours = (cell(texts) for texts in columns)
    return [word, by, f"{claim.says} ({_link(evidence)})", published, ours]


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
    judged_cells = _tally(_distances([evidence]).values())
    parts = [f"[Table](tables/{evidence.report.name}.md) ([tex](tables/{evidence.report.name}.tex),"]
    parts[0] += f" [csv](tables/{evidence.report.name}.csv)): {sum(outcomes)} of {len(outcomes)} outcomes measured"
    if judged_cells:
        parts.append(f"published figures: {judged_cells}")
    made = [record for run in evidence.runs if (record := run.record)]
    made += [evidence.measured] if evidence.measured else []
    if made:
        parts.append(_provenance(made))
    return "; ".join(parts) + "."


@dataclass(frozen=True)
class Quoted:
    """A published figure: whose, of what, and whether of a variational method."""

    group: str
    method: str
    key: str
    figure: str
    variational: bool


def _distances(reports: Sequence[Evidence]) -> dict[Quoted, str]:
    """How ours compares with each published figure; several rows may quote the same, of which the first counts."""
    found: dict[Quoted, str] = {}
    for evidence in reports:
        for row, items in evidence.rows:
            method = method_of(items)
            for column in evidence.report.columns:
                word = distance(measure(items, column), column, row.published.get(column.key)) if items else ""
                if word:
                    name, own = (method.name, method.variational) if method else (row.label, False)
                    quoted = Quoted(row.group, name, column.key, str(row.published[column.key]), own)
                    found.setdefault(quoted, word)
    return found


def _tally(words: Iterable[str]) -> str:
    words = list(words)
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
