"""The page of all claims and figures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reporting import collected, evidence_of, put, record

from svdo.cli.compose import compose
from svdo.report import evidence as evidences
from svdo.report import page, spec, watch
from svdo.report.page import page as page_of

pytest_plugins = ["report_fixtures"]


def test_the_page_says_where_a_figure_shows_a_network_trained_again(tmp_path: Path) -> None:
    overrides = ("model=lenet300", "method=sparsevd", "seed=0", f"results_dir={tmp_path}")
    ours = record(overrides[:3], 1.8, 70.0)
    put(tmp_path, ours)
    planned = evidences.Planned(overrides, compose(overrides))
    for error, count in ((1.8, 0), (1.95, 1)):
        drawn = json.dumps({**ours, "test": {**ours["test"], "error": error}})
        watch.save(planned.config, {"record": np.array(drawn)})
        said = page._trained_again([planned])
        assert len(said) == count
        assert all(ours["id"] in line and "1.95 %, 70.0x, where its record has 1.80 %, 70.0x" in line for line in said)


def test_the_index_counts_the_claims_of_each_paper(report: spec.Report, tmp_path: Path) -> None:
    put(tmp_path, record(("model=lenet300", "method=sparsevd", "seed=0"), 1.8, 70.0))
    error = ["Sparse VD", "test.error"]
    claims = [spec.Claim(says, error, bound) for says, bound in (("little", 5), ("less", 1), ("as much", 1.8))]
    claims.append(spec.Claim("unlike SWS", error, ["SWS", "test.error"]))
    report = replace(report, paper="2017", claims=claims, findings=["It came out so."])
    evidence = replace(evidence_of(collected(report, tmp_path), tmp_path), report=report)
    ((_, page),) = page_of([evidence]).items()
    text = page.decode()
    once = " (1 by one run or measurement)"
    words = f"Replicates: 1{once}. Differs: 1{once}. Open: 1{once}."
    counts = f"Claims: 4, of which measured, some in part: 3. {words}"
    said = "Published figures that ours can fall short of, each in the first row that quotes it, which may be by our schedule"
    each = f"\n{said}"
    assert f"\n{counts}\n" in text
    assert "In short:\n\n- It came out so. ([mini](tables/mini.md))\n" in text
    toys = [replace(evidence, report=replace(report, quick=True))]
    assert "came out so" not in "".join(page.decode() for page in page_of(toys).values())
    assert "Not measured yet; the tables say how long that takes:\n\n- unlike SWS (" in text
    assert f"{each}: of variational dropout, 2 reached.\n" in text
    assert "Kingma" not in text  # no report on it
    assert "## Claims of our own" not in text
    assert "not measured yet: [mini](tables/mini.md)" in text
    twice = [*evidence.rows, *((replace(row, label=f"{row.label}, again"), items) for row, items in evidence.rows)]
    ((_, page),) = page_of([replace(evidence, rows=twice)]).items()
    assert f"{each}: of variational dropout, 2 reached.\n" in page.decode()
    evidence = replace(evidence, report=replace(report, claims=[replace(claims[0], ours=True), claims[1]]))
    ((_, page),) = page_of([evidence]).items()
    assert [line.split(".")[0] for line in page.decode().split("\n") if line.startswith("Claims:")] == [
        "Claims: 1, of which measured, some in part: 1"
    ] * 2
    assert "1.0 minutes on cpu (x86_64), 2 threads, fp32, torch 2.9, 2026-01-02." in text


def test_the_committed_index_is_what_committed_records_render_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    pages = page_of([evidences.gather(spec.load(name)) for name in spec.names()])
    assert Path("results/README.md").read_bytes() == pages[Path("results/README.md")]


def test_the_first_screen_is_read_in_a_minute(report: spec.Report, tmp_path: Path) -> None:
    put(tmp_path, record(("model=lenet300", "method=sparsevd", "seed=0"), 1.8, 70.0))
    claims = [
        spec.Claim("said at length", ["Sparse VD", "test.error"], 1.925, headline="in short"),
        spec.Claim("not there", 1, 2),
    ]
    claims[1].less = ["Sparse VD", "test.error"]
    report = replace(report, paper="2017", claims=claims, brief=["It came out."])
    evidence = replace(evidence_of(collected(report, tmp_path), tmp_path), report=report)
    ((_, content),) = page_of([evidence]).items()
    screen = content.decode().split("# How to read this page")[0]
    assert "\n- It came out.\n" in screen
    (row,) = [[cell.strip() for cell in line.strip("|").split("|")] for line in screen.splitlines() if "in short" in line]
    assert row == ["in short ([mini](tables/mini.md))", "1.92 %", "1.80 ± 0.26 % (1 of 3 seeds so far)", "as good, one run"]
    assert "not there" not in screen
    assert "rest on 2 comparisons by 95 % intervals" in screen


def test_the_committed_first_screen_has_ten_lines_and_fifteen_rows_at_most() -> None:
    reports = [spec.load(name) for name in spec.names()]
    assert 0 < sum(len(report.brief) for report in reports) <= 10
    assert 0 < sum(bool(claim.headline) for report in reports for claim in report.claims) <= 15
