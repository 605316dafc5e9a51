"""What tests of reports ask for by name: two rows of a table, and a small report that is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
from reporting import SMALL_RUN, WATCHED

from svdo.report import cli, spec
from svdo.report.spec import Column, Figure, Row


@pytest.fixture
def report() -> spec.Report:
    """Two rows of the MNIST table, one of them quoted only."""
    columns = spec.load("mnist").columns
    published = {"test.error": 1.92, "layers.sparsity": [98.9, 97.2, 62.0], "compression": 68}
    measured = Row(
        "LeNet-300-100", "Sparse VD", ["model=lenet300", "method=sparsevd"], published=published, source="2017", note="a remark"
    )
    quoted = Row("LeNet-300-100", "SWS", published={"test.error": 1.94}, source="2017")
    return spec.Report("mini", title="Mini", seeds=[0, 1, 2], columns=columns, rows=[quoted, measured])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """``svdo-report VERB small`` in this process: a dense row, one that starts from it, and figures of another run."""
    monkeypatch.chdir(tmp_path)
    dense, sparse = [*SMALL_RUN, "method=none"], [*SMALL_RUN, "method=sparsevd", "method.log_sigma2=-8"]
    report = spec.Report(
        "small",
        title="Small",
        overrides=["runtime.progress=false"],
        seeds=[0, 1],
        columns=[Column("test.error", "error"), Column("compression", "compression", better="higher")],
        rows=[Row("net", "dense", dense), Row("net", "child", sparse, parent="dense", seeds=[1])],
        figures=[Figure("seen", "log_alpha", [WATCHED]), Figure("steps", "training", [WATCHED])],
    )
    monkeypatch.setattr(spec, "load", lambda name: report)
    monkeypatch.setattr(spec, "names", lambda: ["mnist"])

    def call(verb: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["svdo-report", verb, "mnist"])
        cli.main()
        return capsys.readouterr().out

    return call
