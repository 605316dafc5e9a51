"""Claims, judged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from reporting import collected, evidence_of, put, record

from svdo.report import evidence as evidences
from svdo.report import page, spec
from svdo.report.spec import Column, Row
from svdo.report.verdict import judge

pytest_plugins = ["report_fixtures"]


def cells(evidence: evidences.Evidence, claim: spec.Claim) -> tuple[str, ...]:
    """The verdict as the page writes it, without the claim itself."""
    verdict = judge(evidence, claim)
    if not verdict.judgements:
        return "not measured yet", "", "", ""
    word, by, _, published, ours = page._row(evidence, claim, verdict)
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

    part = "1.90 ± 0.14 % (2 of 3 seeds so far)"
    assert judged(67.5, ratio, "LeNet-300-100") == ("holds", "1.04×", "68", "71.0 ± 1.4 (2 of 3 seeds so far)")
    assert judged(error, 1.7, "LeNet-300-100") == ("**does not hold**", "-0.20 points", "1.92 %", f"{part} > 1.7 %")
    assert judged(error, 1.925, "LeNet-300-100")[1] == "+0.02 points"  # 1.92 was published
    assert judged(60, ratio, "LeNet-300-100")[1] == "1.18×"  # not of what was published
    assert judged(60, ratio, "LeNet-300-100")[3] == "60 < 71.0 ± 1.4 (2 of 3 seeds so far)"
    assert judged(error, 1.93, "LeNet-300-100")[0] == judged(error, 1.87, "LeNet-300-100")[0] == "undecided"
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
    single = ["once", "test.error"]
    evidence = replace(evidence, rows=[*rows, *once])
    alone = ["once", "compression"]
    assert judged(alone, 71.3, "LeNet-300-100")[0] == "undecided, one run"  # its spread is that of the other row
    assert judged(alone, 71.5, "LeNet-300-100")[0] == "holds, one run"
    assert judged(single, error, "LeNet-300-100")[3] == f"1.80 (± 0.14) % (1 run) ≈ {part}"  # by that of the row beside it
    beside = spec.Claim("it is so", single, error, ["LeNet-300-100"], beside="compression")
    assert cells(evidence, beside)[1:] == (
        "+0.10 points",
        "1.92 % at 68× ≈ 1.92 % at 68×",
        f"1.80 (± 0.14) % at 70.0× (1 run) ≈ {part} at 71.0×",
    )
    evidence = replace(evidence, rows=once)
    assert judged(alone, 71.3, "LeNet-300-100")[0] == "holds, one run"
    assert judged(single, 1.93, "LeNet-300-100")[0] == "undecided, one run"  # of 10 000 images 180 +- 13 would be misread
    assert judged(single, 1.94, "LeNet-300-100")[0] == "holds, one run"
    evidence = replace(evidence, rows=[(once[0][0], [evidences.Finding({"test": {"error": 1.8}})])])
    assert judged(single, 1.9, "LeNet-300-100")[0] == "holds, measured once"
    tie = "undecided, measured once", "+0.00 points", "1.92 %", "1.80 % ≈ 1.8 %"
    assert judged(single, 1.8, "LeNet-300-100") == tie  # equal, even without spread
    evidence = replace(evidence, rows=[(once[0][0], [evidences.Finding({"compression": None})])])
    assert judged(68, alone, "LeNet-300-100") == ("**does not hold**, measured once", "", "68", "no weights left")


def test_a_claim_shows_how_the_published_figures_compare_beside_ours(tmp_path: Path) -> None:
    rows: list[Any] = []
    for group, published, ours in (
        ("a", (1.0, 2.0), (1.0, 2.0)),
        ("b", (1.29, 1.28), (1.5, 1.5)),
        ("c", (2.0, 1.0), (2.0, 1.0)),
    ):
        for label, quoted, error in zip(("A", "B"), published, ours, strict=True):
            items = [evidences.Finding({"test": {"error": error}})]
            rows.append((Row(group, label, published={"test.error": quoted}), items))
    claim = spec.Claim("A is below B", ["A", "test.error"], ["B", "test.error"])
    evidence = evidence_of(rows, tmp_path)
    for reading, sign in ((0.03, "≈"), (0.0, ">")):  # read off a plot, or not
        columns = [Column("test.error", "error", reading=reading)]
        found = cells(replace(evidence, report=replace(evidence.report, columns=columns)), claim)
        theirs, ours = f"a: 1 < 2<br>b: 1.29 {sign} 1.28<br>c: 2 > 1", "a: 1.00 < 2.00<br>b: 1.50 ≈ 1.50<br>c: 2.00 > 1.00"
        by = "a: 2×<br>b: 1×<br>c: 0.5×"
        word = "a: holds<br>b: undecided<br>c: **does not hold**<br>measured once"
        assert found == (word, by, theirs, ours)
