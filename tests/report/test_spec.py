"""What is declared: reports that load, rows that compose, claims about rows that exist."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from reporting import evidence_of

from svdo.errors import UserError
from svdo.report import evidence as evidences
from svdo.report import figures, spec, verdict
from svdo.report.spec import Row


@pytest.mark.parametrize("name", spec.names())
def test_every_declared_report_loads_and_its_rows_compose(name: str) -> None:
    report = spec.load(name)
    for row in report.rows:
        assert row.published or row.overrides or row.measured
        assert bool(row.published) == bool(row.source), f"{row.label}: a published number needs its source"
        seeds = report.seeds if row.seeds is None else row.seeds
        planned = evidences.runs(report, row)
        assert len(planned) == (0 if row.overrides is None else len(seeds))
        assert all(run.config.pretrained == (run.parent.config.id if run.parent else "") for run in planned)
    for figure in report.figures:
        assert figure.draw in figures.FIGURES
        assert len(evidences.watched(report, figure)) == len(figure.runs)


@pytest.mark.parametrize("name", spec.names())
def test_the_rows_of_a_network_stand_together(name: str) -> None:
    rows = spec.load(name).rows
    groups = [row.group for row in rows]
    assert sum(one != other for one, other in itertools.pairwise(groups)) == len(set(groups)) - 1
    assert [row.label for row in rows if row.group == groups[0]] == list(dict.fromkeys(row.label for row in rows))[
        : groups.count(groups[0])
    ]


def test_an_unknown_report_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=f"take one of: {', '.join(spec.names())}"):
        spec.load("minst")


def test_toy_settings_keep_one_seed_and_the_first_value_of_a_sweep() -> None:
    rows = [Row("", "a", [], sweep={"model.k": [value]}, seeds=[3, 4]) for value in (1, 2)] + [Row("", "b", [])]
    toy = spec.toy(spec.Report("x", title="X", seeds=[0, 1], rows=rows))
    assert [row.label for row in toy.rows] == ["a", "b"]
    assert toy.rows[0].seeds == [3]
    assert toy.seeds == [0]
    assert toy.quick


@pytest.mark.parametrize("name", spec.names())
def test_every_claim_names_rows_and_columns_that_exist(name: str) -> None:
    report = spec.load(name)
    evidence = replace(evidence_of([(row, [evidences.Finding(None)]) for row in report.rows], Path()), report=report)
    for claim in report.claims:
        groups = [row.group for row in report.rows]
        assert any(
            all(verdict._measured(evidence, claim, side, group) for side in (claim.less, claim.more)) for group in groups
        ), claim.says
        assert set(claim.groups) <= set(groups)
