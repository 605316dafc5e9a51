"""Cells -> Markdown, LaTeX and CSV; published figures stand as quoted, measured ones with their spread and their runs."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from ..runs import Record
from .distances import distance
from .evidence import Finding, Planned, Rows
from .expected import core_seconds, expected
from .spec import Column, Report, Row
from .values import Measured, measure

NOT_TIMED = "not timed yet"


def table(report: Report, collected: Rows) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of text, the same for every format; what no row has is left out, and rows without a figure."""
    collected = [(row, items) for row, items in collected if not _empty(row, items)]
    named = ["network"] if any(row.group for row, _ in collected) else []
    quoted = {column.key for column in report.columns if any(column.key in row.published for row, _ in collected)}
    headers = [*named, "method"]
    for column in report.columns:
        headers += [f"{column.label}, published"] * (column.key in quoted) + [f"{column.label}, measured"]
    timed = any(isinstance(item, Planned) for _, items in collected for item in items)  # a measurement is timed as a whole
    headers += ["runs"] + ["core-minutes per run"] * timed
    rows = []
    for row, planned in collected:
        cells = [row.group] * len(named) + [row.label]
        for column in report.columns:
            cells += [_published(row.published.get(column.key), column)] * (column.key in quoted)
            cells.append(measured_text(measure(planned, column), column))
        done = [item for item in planned if item.record is not None]
        trained = [record for item in done if isinstance(item, Planned) and (record := item.record)]
        cells += [f"{len(done)} of {len(planned)}" if planned else "quoted"] + [core_minutes(trained)] * timed
        rows.append(cells)
    return headers, rows


def core_minutes(records: Sequence[Record]) -> str:
    """Wall time of one run times its threads, a mean; of runs on a GPU, minutes."""
    cpu = [r for r in records if r["provenance"]["device"].startswith("cpu")]
    gpu = [r for r in records if r not in cpu]
    seconds = [core_seconds(r) for r in cpu]
    texts = [f"{statistics.fmean(seconds) / 60:.1f}"] if cpu else []
    texts += [f"{statistics.fmean(r['seconds'] for r in gpu) / 60:.1f} on a GPU"] if gpu else []
    return ", ".join(texts)


def markdown(report: Report, collected: Rows) -> str:
    """The table with its notes, sources, the ids of its runs, and what is still to be trained, timed by those that are done."""
    headers, rows = table(report, collected)
    parts = [f"# {report.title}", tabulate(rows, headers, tablefmt="github", disable_numparse=True)]
    notes = [*report.notes, *(f"{_label(row)}: {row.note}" for row, _ in collected if row.note)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    parts += [*_sources(collected), *_records(report, collected), *_left(collected)]
    return "\n\n".join(parts) + "\n"


def _sources(collected: Rows) -> list[str]:
    """Where the published figures are quoted from."""
    quoted = [row for row, _ in collected if row.source]
    by_source = {row.source: [_label(other) for other in quoted if other.source == row.source] for row in quoted}
    if len(by_source) == 1:
        return [f"Published figures, as quoted: {quoted[0].source}"]
    sources = [f"- {'; '.join(labels)}: {source}" for source, labels in by_source.items()]
    return ["Published figures, as quoted:", "\n".join(sources)] if sources else []


def _records(report: Report, collected: Rows) -> list[str]:
    """The ids of the runs behind each row, and the command of the first."""
    ids = []
    for row, items in collected:
        names = dict.fromkeys(f"`{record['id']}`" for item in items if (record := item.record) is not None)
        commands = [item.command for item in items if isinstance(item, Planned)][:1]
        ids += [f"- {_label(row)}: " + ", ".join([*names, *(f"by `{command}`" for command in commands)])] if names else []
    if not ids:
        return []
    runs = any(isinstance(item, Planned) for _, items in collected for item in items)
    kept = ["`results/runs/<id>/result.json`"] * runs
    kept += [f"`results/measured/{report.name}.json`"] * any(row.measured for row, _ in collected)
    return [f"Measured figures, by record ({', '.join(kept)}):", "\n".join(ids)]


def _left(collected: Rows) -> list[str]:
    """What is still to be trained, timed by the table's own runs."""
    left = [run for _, items in collected for run in items if isinstance(run, Planned) and run.record is None]
    if not left:
        return []
    records = [record for _, items in collected for run in items if isinstance(run, Planned) and (record := run.record)]
    times = [expected(run.config, records) for run in left]
    lines = [f"{run.command}   # {time or NOT_TIMED}" for run, time in zip(left, times, strict=True)]
    empty = [_label(row) for row, items in collected if _empty(row, items)]
    said = [f"Rows that have no figure yet, published or measured, are not shown: {'; '.join(empty)}."] if empty else []
    said.append("Still to be trained (`svdo-report plan` names what these start from, too):")
    return [*said, "\n".join(["```bash", *lines, "```"])]


def latex(report: Report, collected: Rows) -> str:
    """A booktabs tabular."""
    headers, rows = table(report, collected)
    return tabulate(rows, headers, tablefmt="latex_booktabs", disable_numparse=True) + "\n"


def comma_separated(report: Report, collected: Rows) -> str:
    """Numbers at full precision: one line per row and quantity."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["network", "method", "quantity", "published", "mean", "std", "n", "verdict"])
    for row, planned in collected:
        for column in report.columns:
            measured, published = measure(planned, column), row.published.get(column.key)
            mean = std = n = ""
            if measured is not None:
                mean, std = (" ".join(f"{value:.6g}" for value in part) for part in (measured.means, measured.stds))
                n = str(measured.n)
            quoted = " ".join(map(str, published)) if isinstance(published, list) else published
            writer.writerow([row.group, row.label, column.key, quoted, mean, std, n, distance(measured, column, published)])
    return text.getvalue()


def verdicts(report: Report, collected: Rows) -> str:
    """Ours beside the published figure, a verdict per cell."""
    lines = []
    for row, planned in collected:
        for column in report.columns:
            published = row.published.get(column.key)
            measured = measure(planned, column)
            word = distance(measured, column, published)
            if word and planned:
                ours = measured_text(measured, column) or "-"
                lines.append([row.group, row.label, column.label, _published(published, column), ours, word])
    headers = ["network", "method", "quantity", "published", "measured", "verdict"]
    return tabulate(lines, headers, disable_numparse=True)


def measured_text(measured: Measured | None, column: Column) -> str:
    """mean ± std, the spread only where it is known; layers are joined by dashes, without spread."""
    if measured is None:
        return ""
    empty = "no weights left" + " in some runs" * any(map(math.isnan, measured.means))
    means = " - ".join(f"{mean:{column.format}}" if math.isfinite(mean) else empty for mean in measured.means)
    alone = measured.n == 1 and not measured.stds[0]
    if len(measured.means) > 1 or alone or not math.isfinite(measured.means[0]):
        return means
    return f"{means} ± {measured.stds[0]:{column.format}}"


def _published(value: Any, column: Column) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " - ".join(str(item) for item in value)
    return str(value) if isinstance(value, int) else f"{value:{column.format}}"  # 68 was published as 68, whatever ours shows


def _empty(row: Row, items: Sequence[Planned | Finding]) -> bool:
    return not row.published and not any(item.record for item in items)


def _label(row: Row) -> str:
    return f"{row.group}, {row.label}" if row.group else row.label
