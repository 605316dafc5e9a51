"""Claims, judged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reporting import collected, evidence_of, put, record

from svdo.report import evidence as evidences
from svdo.report import intervals, page, spec, values, verdict
from svdo.report.spec import Column, Row
from svdo.report.verdict import Word, judge

pytest_plugins = ["report_fixtures"]


def cells(evidence: evidences.Evidence, claim: spec.Claim) -> tuple[str, ...]:
    """The verdict as the page writes it, without the claim itself."""
    found = judge(evidence, claim)
    if not found.judgements:
        return "not measured yet", "", "", ""
    word, by, _, published, ours = page._row(evidence, claim, found)
    return word, by, published, ours


def test_a_claim_is_judged_group_by_group(report: spec.Report, tmp_path: Path) -> None:
    for seed, error in enumerate((1.8, 2.0)):
        put(tmp_path, record(("model=lenet300", "method=sparsevd", f"seed={seed}"), error, 70.0 + 2 * seed))
    rows = collected(report, tmp_path)
    other = [(replace(row, group="other"), items) for row, items in rows]
    unmeasured = [(replace(row, group="third"), [evidences.Finding(None)]) for row, _ in rows]
    evidence = replace(evidence_of([*rows, *other, *unmeasured], tmp_path), report=report)
    ratio, error = ["Sparse VD", "compression"], ["Sparse VD", "test.error"]

    def judged(less: Any, more: Any, group: str = "") -> tuple[str, ...]:
        return cells(evidence, spec.Claim("it is so", less, more, [group] * bool(group)))

    # Student's t with one degree of freedom, 12.7, times 0.1414 / sqrt(2); of the ratio times 1.414 / sqrt(2).
    part, times = "1.90 ± 1.27 % (2 of 3 seeds so far)", "71.0 ± 12.7 (2 of 3 seeds so far)"
    assert judged(67.5, ratio, "LeNet-300-100") == ("as good", "1.04×", "68", times)
    assert judged(error, 1.7, "LeNet-300-100") == ("open", "-0.20 points", "1.92 %", f"{part} ≈ 1.7 %")
    assert judged(error, 1.925, "LeNet-300-100")[:2] == ("as good", "+0.02 points")  # 1.92 was published
    assert judged(60, ratio, "LeNet-300-100")[1] == "1.18×"  # not of what was published
    assert judged(50, ratio, "LeNet-300-100")[::3] == ("holds", f"50 < {times}")
    assert judged(ratio, 50, "LeNet-300-100")[::3] == ("**does not hold**", f"{times} > 50")
    assert judged(error, 1.93, "third") == ("not measured yet", "", "", "")
    assert judged(error, ["SWS", "test.error"]) == ("not measured yet", "", "", "")  # quoted only
    quoted = "LeNet-300-100: 1.92 %<br>other: 1.92 %"
    by = "LeNet-300-100: +3.10 points<br>other: +3.10 points"
    ours = f"LeNet-300-100: {part} < 5 %<br>other: {part} < 5 %"  # the bound is not what was published
    assert judged(error, 5) == ("holds (1 of 3 not measured yet)", by, quoted, ours)
    assert judged([*error, "LeNet-300-100"], 5, "third")[0] == "holds"  # one side of another group
    unlike = replace(rows[1][0], published={})
    evidence = replace(evidence, rows=[*rows, *((replace(unlike, group="other"), items) for row, items in rows[1:])])
    ours = f"LeNet-300-100: {part}<br>other: {part} ≈ 1.92 %"
    assert judged(error, 1.92)[2:] == ("LeNet-300-100: 1.92 %", ours)  # published of one of them alone
    assert judged(1.92, error)[2:] == ("LeNet-300-100: 1.92 %", f"LeNet-300-100: {part}<br>other: 1.92 % ≈ {part}")
    once = [(replace(rows[1][0], label="once"), rows[1][1][:1])]  # its error is 1.8, of one run
    single, alone = ["once", "test.error"], ["once", "compression"]
    evidence = replace(evidence, rows=[*rows, *once])
    assert judged(alone, 80, "LeNet-300-100")[0] == "open, one run"  # its spread is that of the other row
    assert judged(alone, 90, "LeNet-300-100")[0] == "holds, one run"
    beside = spec.Claim("it is so", single, error, ["LeNet-300-100"], beside="compression")
    assert cells(evidence, beside)[1:] == (
        "+0.10 points",
        "1.92 % at 68× ≈ 1.92 % at 68×",
        f"1.80 ± 1.80 % at 70.0× (1 run) ≈ {part} at 71.0×",
    )
    evidence = replace(evidence, rows=once)
    assert judged(alone, 71.3, "LeNet-300-100")[0] == "holds, one run"  # nothing tells its interval
    assert judged(single, 2.05, "LeNet-300-100")[0] == "open, one run"  # of 10 000 images 180 +- 26 would be misread
    assert judged(single, 2.07, "LeNet-300-100")[0] == "holds, one run"
    evidence = replace(evidence, rows=[(once[0][0], [evidences.Finding({"nll": 1.8})])])
    columns = [Column("nll", "nll")]
    evidence = replace(evidence, report=replace(report, columns=columns))
    assert judged(["once", "nll"], 1.9, "LeNet-300-100")[0] == "holds, measured once"
    assert judged(["once", "nll"], 1.8, "LeNet-300-100")[0] == "open, measured once"  # equal, even without spread
    evidence = replace(evidence, report=report, rows=[(once[0][0], [evidences.Finding({"compression": None})])])
    assert judged(68, alone, "LeNet-300-100") == ("**worse**, measured once", "", "68", "no weights left")


@pytest.mark.parametrize(
    ("setting", "ours", "word"),
    [
        ("same", 1.92, Word.REPLICATES),
        ("same", 2.10, Word.REPLICATES),  # within what 10 000 test images tell, 0.27 points
        ("same", 2.30, Word.DIFFERS),
        ("same", 1.50, Word.DIFFERS),  # better, and no replication
        ("schedule", 2.10, Word.AS_GOOD),
        ("schedule", 2.30, Word.WORSE),
        ("schedule", 1.50, Word.BETTER),
        ("other", 1.50, Word.NOT_COMPARABLE),
        ("other", 1.92, Word.NOT_COMPARABLE),
        ("confounded", 1.92, Word.CONFOUNDED),
    ],
)
def test_what_is_said_beside_a_published_figure(setting: str, ours: float, word: Word, tmp_path: Path) -> None:
    rows: list[Any] = [(Row("a", "A", published={"test.error": 1.92}), [evidences.Finding({"test": {"error": ours}})])]
    report = spec.Report(columns=[Column("test.error", "error %")], paper="2017")
    evidence = replace(evidence_of(rows, tmp_path), report=report)
    for less, more in ((["A", "test.error"], 1.925), (1.925, ["A", "test.error"])):
        found = judge(evidence, spec.Claim("so", less, more, setting=setting)).word
        turned = {Word.BETTER: Word.WORSE, Word.WORSE: Word.BETTER}.get(word, word)
        assert found is (word if less != 1.925 else turned)


def test_the_setting_follows_from_the_rows_where_it_is_not_declared() -> None:
    theirs, ours = ["Sparse VD, authors' 200 epochs", "x"], ["Sparse VD", "x"]
    assert verdict.setting(spec.Claim("so", theirs, 1.0)) == verdict.setting(spec.Claim("so", 1.0, theirs)) == "same"
    assert verdict.setting(spec.Claim("so", ours, 1.0)) == "schedule"
    assert verdict.setting(spec.Claim("so", theirs, 1.0, setting="other")) == "other"


def test_an_interval_is_students_over_seeds_pooled_over_siblings_and_no_narrower_than_the_test_images_allow() -> None:
    quantile = pytest.importorskip("scipy.stats").t.ppf
    for freedom in (1, 2, 5, 9, 10, 11, 20, 50, 1000):
        assert intervals.student(freedom) == pytest.approx(quantile(0.975, freedom), abs=1e-3)
    errors = {"one": [1.0, 1.4, 1.2], "other": [2.0, 2.4], "alone": [3.0]}
    rows = [
        (Row("g", label), [evidences.Finding({"e": value, "r": 10 * value}) for value in found])
        for label, found in errors.items()
    ]
    evidence = evidence_of(rows, Path())

    def half(number: int, key: str, label: str) -> float:
        column, (row, items) = Column(key, label), rows[number]
        found = values.measure(items, column)
        assert found is not None
        return intervals.half_width(evidence, row, items, column, found)

    deviation = ((0.04 * 2 + 0.08 * 1) / 3) ** 0.5
    assert half(0, "e", "e %") == pytest.approx(quantile(0.975, 3) * deviation / 3**0.5, rel=1e-4)
    assert half(2, "e", "e %") == pytest.approx(quantile(0.975, 3) * deviation, rel=1e-4)
    relative = ((0.04 / 1.44 * 2 + 0.08 / 4.84) / 3) ** 0.5
    assert half(2, "r", "ratio") == pytest.approx(quantile(0.975, 3) * relative * 30.0, rel=1e-4)
    exact = [(Row("g", "sure"), [evidences.Finding({"test": {"error": 2.0}})] * 3)]
    found = intervals.half_width(
        evidence_of(exact, Path()), *exact[0], Column("test.error", "error %"), values.Measured((2.0,), (0.0,), 3)
    )
    assert found == pytest.approx(1.96 * (2.0 * 98.0 / 10_000) ** 0.5, rel=1e-4)


def test_a_claim_shows_how_the_published_figures_compare_beside_ours(tmp_path: Path) -> None:
    rows: list[Any] = []
    for group, published, ours in (
        ("a", (1.0, 2.0), (1.0, 2.0)),
        ("b", (1.29, 1.28), (1.5, 1.5)),
        ("c", (2.0, 1.0), (2.0, 1.0)),
    ):
        for label, quoted, error in zip(("A", "B"), published, ours, strict=True):
            rows.append((Row(group, label, published={"nll": quoted}), [evidences.Finding({"nll": error})]))
    claim = spec.Claim("A is below B", ["A", "nll"], ["B", "nll"])
    evidence = evidence_of(rows, tmp_path)
    for reading, sign in ((0.03, "≈"), (0.0, ">")):  # read off a plot, or not
        columns = [Column("nll", "nll", reading=reading)]
        found = cells(replace(evidence, report=replace(evidence.report, columns=columns, paper="2017")), claim)
        theirs, ours = f"a: 1 < 2<br>b: 1.29 {sign} 1.28<br>c: 2 > 1", "a: 1.00 < 2.00<br>b: 1.50 ≈ 1.50<br>c: 2.00 > 1.00"
        by = "a: 2×<br>b: 1×<br>c: 0.5×"
        word = "a: replicates<br>b: open<br>c: **differs**<br>measured once"
        assert found == (word, by, theirs, ours)
