"""What a table declares in ``conf/report/NAME.yaml``: rows, columns, seeds, published numbers with their source."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..errors import UserError, require

# How ours was made, beside what was published: alike; by a schedule of ours, all else alike; by another recipe, so that figures
# do not compare; or so that something else than what is claimed may have made the difference.
SETTINGS = ("same", "schedule", "other", "confounded")


@dataclass
class Column:
    """One measured quantity: ``key`` is its dotted place in a run's record.

    ``layers.x`` is ``x`` of every layer, and ``x.accuracy`` what ``x.error`` leaves of 100 %.
    """

    key: str = MISSING
    label: str = MISSING
    format: str = ".2f"
    better: str = "lower"  # lower, higher, or none where no way is better
    tolerance: float = 0.0  # how much worse still counts as close, as a share of the published number
    reading: float = 0.0  # published figures no further apart than this cannot be told apart


@dataclass
class Row:
    """One network with one method, or one outcome of the report's measurement.

    Without ``overrides`` and ``measured`` it is quoted only; without ``published`` nobody published it.
    ``seeds`` replace the report's. ``parent`` is the label of a row above, of the same group: a run starts from the weights of
    that row's run with its seed.
    ``sweep`` (one key with its values) stands for one row per value, its published figures being lists in that order.
    """

    group: str = ""
    label: str = MISSING
    overrides: list[str] | None = None
    measured: str = ""
    parent: str = ""
    seeds: list[int] | None = None
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    note: str = ""


@dataclass
class Figure:
    """One picture: ``draw`` names a function of ``figures.py``; ``runs`` are overrides of runs that are looked at closely."""

    name: str = MISSING
    draw: str = MISSING
    runs: list[list[str]] = field(default_factory=list)
    caption: str = ""


@dataclass
class Claim:
    """A statement of the papers that our figures decide: in every group of rows that has them, ``less`` is below ``more``.

    Each is a number, or a row's label, a column's key and, where it is not the group at hand, the row's group. ``groups`` are
    those that count, left out all. ``beside`` is the key of a ratio that is written with both; ``ours`` says that no paper
    claims it. ``setting`` is one of ``SETTINGS``, or empty: then rows of the authors' schedule have the published setting, and
    others ours. ``headline`` is the claim in a few words for the first screen of results/README.md, empty where not there.
    """

    says: str = MISSING
    less: Any = MISSING
    more: Any = MISSING
    groups: list[str] = field(default_factory=list)
    beside: str = ""
    ours: bool = False
    setting: str = ""
    headline: str = ""


@dataclass
class Report:
    """A declared table, with its figures and the claims that it decides.

    ``measure`` names a function of ``measures.py``, for what no run's record holds; ``needs`` are overrides of the runs whose
    networks it looks at, by the name under which it gets them. ``findings`` say in words what came out, ``brief`` in a line for
    the first screen of results/README.md. ``quick`` is for ``toy``.
    """

    name: str = ""
    measure: str = ""
    needs: dict[str, list[str]] = field(default_factory=dict)
    title: str = MISSING
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    columns: list[Column] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    brief: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    place: int = 0  # among the reports of results/README.md
    paper: str = ""  # whose claims it decides: 2015 or 2017; none: they answer questions of ours
    quick: bool = False


def names() -> list[str]:
    """Every declared report."""
    folder = resources.files("svdo.conf") / "report"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load(name: str) -> Report:
    """The report called ``name``; raises ``UserError`` where there is none, or where its file has an unknown key or type."""
    if name not in names():
        raise UserError(f"no report {name}; take one of: {', '.join(names())}")
    try:
        text = (resources.files("svdo.conf") / "report" / f"{name}.yaml").read_text("utf-8")
        report = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Report), OmegaConf.create(text)))
    except OmegaConfBaseException as error:
        raise UserError(f"conf/report/{name}.yaml: {str(error).splitlines()[0]} ({error.full_key})") from None
    except (OSError, ValueError, YAMLError) as error:  # of which ValueError: it is no UTF-8
        raise UserError(f"conf/report/{name}.yaml cannot be read: {' '.join(str(error).split())}") from None
    assert isinstance(report, Report)
    report.name = name
    for claim in report.claims:
        known = claim.setting in ("", *SETTINGS)
        require(known, f"conf/report/{name}.yaml: setting={claim.setting} is not a choice; take one of: {', '.join(SETTINGS)}")
    rows = [single for row in report.rows for single in _expanded(row)]
    groups = list(dict.fromkeys(row.group for row in rows))
    report.rows = sorted(rows, key=lambda row: groups.index(row.group))  # what is compared stands together
    return report


def parent(report: Report, row: Row) -> Row:
    """The row whose networks a row starts from; raises ``UserError`` where no row above it has that label."""
    above = report.rows[: report.rows.index(row)]
    for other in above:
        if (other.group, other.label) == (row.group, row.parent) and other.overrides is not None:
            return other
    raise UserError(f"conf/report/{report.name}.yaml: {row.label}: no row above it in {row.group} is called {row.parent}")


def toy(report: Report) -> Report:
    """The same table from one seed and the first value of each sweep: it shows that everything works, and nothing else."""
    first: dict[str, Any] = {}
    rows = []
    for row in report.rows:
        if all(first.setdefault(key, values) == values for key, values in row.sweep.items()):
            rows.append(replace(row, seeds=None if row.seeds is None else row.seeds[:1]))
    title = f"{report.title} (toy settings: no figure here can be compared with anything)"
    return replace(report, title=title, seeds=report.seeds[:1], rows=rows, quick=True)


def _expanded(row: Row) -> list[Row]:
    """A row per value of its sweep, which the row then keeps as a sweep of that value alone."""
    if not row.sweep:
        return [row]
    ((key, values),) = row.sweep.items()
    for column, figures in row.published.items():
        require(len(figures) == len(values), f"{row.label}: as many published {column} as values of {key} are needed")
    rows = []
    for number, value in enumerate(values):
        setting, short = f"{key}={value}", f"{key.split('.')[-1]}={value}"
        rows.append(
            replace(
                row,
                group=f"{row.group} {short}".strip(),
                overrides=None if row.overrides is None else [*row.overrides, setting],
                sweep={key: [value]},
                published={column: figures[number] for column, figures in row.published.items() if figures[number] is not None},
            )
        )
    return rows
