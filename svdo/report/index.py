"""``results/README.md``: which claims of the papers held, which did not and by how much, and where each figure comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..runs import Record
from . import render
from .collect import Evidence, measure, verdict
from .spec import Claim

INTRODUCTION = """\
# What was measured

Claims of the two papers, or of their figures, and what our own runs say of them: *Variational Dropout and the Local
Reparameterization Trick* (Kingma, Salimans, Welling 2015), *Variational Dropout Sparsifies Deep Neural Networks* (Molchanov,
Ashukha, Vetrov 2017). `svdo-report render all` writes this page from the records in `runs/` and `measured/`."""

Side = tuple[float, str]  # a figure and how it is written


def page(reports: Sequence[Evidence]) -> dict[Path, bytes]:
    """The file, by its path."""
    reports = sorted(reports, key=lambda evidence: evidence.report.place)
    toy = ["# Toy settings: no figure here can be compared with anything"] * any(item.report.quick for item in reports)
    claims = [
        [claim.says, *judged(evidence, claim), _link(evidence)] for evidence in reports for claim in evidence.report.claims
    ]
    headers = ["claim", "in the published figures", "in ours", "measured", "table"]
    parts = [*toy, INTRODUCTION, tabulate(claims, headers, tablefmt="github", disable_numparse=True)]
    for evidence in reports:
        report = evidence.report
        figures = [f"figures/{figure.name}.png" for figure, _ in evidence.figures]
        shown = [f"![{report.title}]({path})" for path in figures if (evidence.results_dir / path).exists()]
        parts += [f"## {report.title}", _status(evidence), *shown]
    return {evidence.results_dir / "README.md": ("\n\n".join(parts) + "\n").encode() for evidence in reports[:1]}


def judged(evidence: Evidence, claim: Claim) -> tuple[str, str, str]:
    """Whether it holds in the published figures (nothing where there are none) and in ours, and what ours are."""
    groups = list(dict.fromkeys(row.group for row, _ in evidence.rows if claim.group in ("", row.group)))
    quoted = [(_published(evidence, claim.less, group), _published(evidence, claim.more, group)) for group in groups]
    sides = [(group, _measured(evidence, claim.less, group), _measured(evidence, claim.more, group)) for group in groups]
    both = [(group, less, more) for group, less, more in sides if less is not None and more is not None]
    known = [(group, less, more) for group, less, more in both if less[1] and more[1]]
    published = [less < more for less, more in quoted if less is not None and more is not None]
    word = _word([less[0] < more[0] for _, less, more in known]) or "not measured yet"
    if 0 < len(known) < len(both):
        word += f" ({len(both) - len(known)} not measured yet)"
    named = len(both) > 1
    figures = [f"{group}: " * named + f"{less[1]} {'<' if less[0] < more[0] else '≥'} {more[1]}" for group, less, more in known]
    return _word(published), word, "; ".join(figures)


def _word(held: Sequence[bool]) -> str:
    if not held:
        return ""
    return {len(held): "yes", 0: "**no**"}.get(sum(held), f"in {sum(held)} of {len(held)}")


def _measured(evidence: Evidence, side: Any, group: str) -> Side | None:
    """Ours, written as nothing where it is not measured; None where the group has no such row."""
    if not isinstance(side, list):
        return float(side), f"{side:g}"
    label, key, group = _place(side, group)
    column = next(column for column in evidence.report.columns if column.key == key)
    for row, items in evidence.rows:
        if (row.group, row.label) == (group, label):
            found = measure(items, column)
            if found is None:
                return 0.0, ""
            part = f" ({found.n} of {len(items)} runs)" if found.n < len(items) else ""
            return found.means[0], render.measured_text(found, column) + part
    return None


def _place(side: Any, group: str) -> tuple[str, str, str]:
    """Label, key and group of a figure."""
    label, key, *own = side
    return label, key, own[0] if own else group


def _published(evidence: Evidence, side: Any, group: str) -> float | None:
    """The published figure, or the number itself; None where there is none."""
    if not isinstance(side, list):
        return float(side)
    label, key, group = _place(side, group)
    found = (row.published.get(key) for row, _ in evidence.rows if (row.group, row.label) == (group, label))
    return next(found, None)


def _link(evidence: Evidence) -> str:
    return f"[{evidence.report.name}](tables/{evidence.report.name}.md)"


def _status(evidence: Evidence) -> str:
    """Where the table is, how much of it is measured, on what, and how its cells compare with the published ones."""
    records = [record for _, items in evidence.rows for item in items if (record := item.record) is not None]
    total = sum(len(items) for _, items in evidence.rows)
    words = [
        verdict(measure(items, column), column, row.published.get(column.key))
        for row, items in evidence.rows
        for column in evidence.report.columns
        if items
    ]
    counts = {word: words.count(word) for word in ("reached", "close", "short", "open")}
    judged_cells = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    parts = [f"[Table](tables/{evidence.report.name}.md) ([tex](tables/{evidence.report.name}.tex),"]
    parts[0] += f" [csv](tables/{evidence.report.name}.csv)): {len(records)} of {total} outcomes measured"
    if judged_cells:
        parts.append(f"published figures: {judged_cells}")
    if records:
        parts.append(_provenance(records))
    return "; ".join(parts) + "."


def _provenance(records: Sequence[Record]) -> str:
    """When, on what, with which versions."""
    records = list({record["id"].partition("/")[0]: record for record in records}.values())  # a measurement's rows count once
    sources = [record["provenance"] for record in records]
    days = sorted({source["started"][:10] for source in sources})
    devices, versions = (", ".join(sorted({source[key] for source in sources})) for key in ("device", "torch"))
    hours = sum(record["seconds"] for record in records) / 3600
    return f"{hours:.1f} hours on {devices}, torch {versions}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"
