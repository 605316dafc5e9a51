"""Networks of timm and transformers: each converts, or says what to exclude; trains a step; evaluates as plain does."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svdo
from svdo import UserError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def vision(name: str, size: int = 64, **settings: Any) -> tuple[nn.Module, Tensor]:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=10, **settings), torch.randn(2, 3, size, size)


def language(kind: str, **settings: Any) -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, bos_token_id=0, eos_token_id=0, **settings)
    head = "LMHeadModel" if kind == "GPT2" else "ForSequenceClassification"
    return getattr(transformers, kind + head)(config), torch.randint(50, (2, 8))


TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "swin": lambda: vision(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "beit": lambda: vision("beit_base_patch16_224", img_size=64, **TINY),
    "eva02": lambda: vision("eva02_tiny_patch14_224", 56, img_size=56, **TINY),
    "nfnet": lambda: vision("test_nfnet"),
    "efficientnet": lambda: vision("test_efficientnet"),
    "efficientnet padded as in TensorFlow": lambda: vision("tf_efficientnet_b0", 32),
    "vit": lambda: vision("vit_tiny_patch16_224", img_size=64, **TINY),
    "bert": lambda: language("Bert", **BERT, max_position_embeddings=16),
    "gpt2": lambda: language("GPT2", n_embd=16, n_layer=2, n_head=2, n_positions=16),
}
REFUSED = {"nfnet": "ScaledStdConv2d", "efficientnet padded as in TensorFlow": "Conv2dSame"}
LEFT_DENSE = {"bert": "3 Embedding", "gpt2": "8 Conv1D", "vit": "1 VisionTransformer", "beit": "2 Attention"}
READ_PAST = {"beit": "blocks.0.attn.qkv", "eva02": "blocks.1.attn.qkv"}


def to_paste(network: nn.Module) -> tuple[list[str], str]:
    """What the refusal of a network says: its exclude, and all of it."""
    with pytest.raises(UserError) as error:
        svdo.convert(network, "sparsevd")
    found = re.search(r"exclude=(\[.*\])", str(error.value))
    assert found
    return ast.literal_eval(found[1]), str(error.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_converts_trains_and_evaluates_as_plain_does(name: str) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[name]()

    def outputs(model: nn.Module) -> Tensor:
        found = model(x)
        return found if isinstance(found, Tensor) else found.logits

    exclude: list[str] = []
    if name in REFUSED:
        exclude, said = to_paste(network)
        assert REFUSED[name] in said
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = svdo.convert(network, "sparsevd", exclude=exclude, log_sigma2=-30.0).train()  # some heads start next to 0
        optimizer = torch.optim.Adam(svdo.parameter_groups(model, 1e-3))
        loss = outputs(model).square().mean() + 1e-6 * svdo.kl(model)
        loss.backward()
        optimizer.step()
    said = " ".join(str(warning.message) for warning in caught)
    assert torch.isfinite(loss)
    assert LEFT_DENSE.get(name, "") in said and READ_PAST.get(name, "") in said
    model.eval()
    dense = outputs(model)
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "noise"):
                layer.noise.log_sigma2[::3] = 9.0
    sparse = outputs(model)
    assert not torch.equal(sparse, dense)
    assert torch.equal(sparse, outputs(svdo.plain(model)))
    assert torch.equal(sparse, outputs(model))


def test_the_57_layers_of_an_nfnet_are_refused_in_one_message() -> None:
    with torch.device("meta"):
        network = vision("nfnet_f0")[0]
    exclude, _ = to_paste(network)
    assert len(exclude) == 57
    assert svdo.masks(svdo.convert(network, "sparsevd", exclude=exclude))
