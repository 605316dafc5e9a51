"""ONNX files in ONNX Runtime against torch."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import svdo
from svdo import UserError
from svdo.export.formats import Choice
from svdo.export.onnx import OnnxRunner, int8_model, onnx_model


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    small = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 5)
    )  # fmt: skip
    return {
        "convolutional": (svdo.plain(svdo.convert(small, "sparsevd", log_sigma2=-8)).eval(), (1, 8, 8)),
        "dense": (nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), (7,)),
    }


@pytest.mark.parametrize("name", networks())
def test_any_batch_gives_what_torch_gives(name: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    network, shape = networks()[name]
    model = onnx_model(network, torch.zeros(1, *shape))
    assert b"site-packages" not in model and __file__.encode() not in model
    run = OnnxRunner(model)
    x = torch.randn(17, *shape)
    expected = network(x).detach().numpy()
    for n in (1, 2, 17):
        np.testing.assert_allclose(run(x[:n].numpy()), expected[:n], rtol=1e-4, atol=1e-5)


def test_int8_is_near_and_smaller() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10)).eval()
    x = torch.randn(300, 1, 10, 10)
    model = onnx_model(network, x)
    small = int8_model(model, x[:200].numpy())
    assert len(small) < 0.5 * len(model)
    found, expected = OnnxRunner(small)(x[200:].numpy()), network(x[200:]).detach().numpy()
    assert 0.0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_said_with_its_command(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if package != missing:
            pytest.importorskip(package)
    monkeypatch.setitem(sys.modules, missing, None)  # what import then takes for absent
    with pytest.raises(UserError, match=rf"{missing} is not installed; install it with: pip install 'svdo\[onnx\]'"):
        Choice("onnx").check()


def test_exporters_are_warned_of_a_converted_network_and_calls_are_not(recwarn: pytest.WarningsRecorder) -> None:
    network = svdo.convert(nn.Sequential(nn.Linear(3, 2)), "sparsevd", log_sigma2=-8).eval()
    x = torch.ones(2, 3)
    network(x)
    torch.compile(network, backend="eager")(x)
    torch.jit.trace(svdo.plain(network), (x,))
    assert not [warning for warning in recwarn if "converted network" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"a converted network .* svdo\.plain"):
        torch.jit.trace(network, (x,))
    if hasattr(torch.compiler, "is_exporting"):
        with pytest.warns(UserWarning, match=r"a converted network .* svdo\.plain"):
            torch.export.export(network, (x,))
