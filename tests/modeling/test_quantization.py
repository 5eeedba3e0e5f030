"""4-bit layers: what bitsandbytes does on a CPU with AVX512-BF16, and on other machines a layer with the same flag."""

from types import SimpleNamespace

import pytest
import torch

from dmpo_trl.modeling.quantization import keep_trainable, unpacked_layers


def quantized_model():
    bnb = pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    return torch.nn.Sequential(torch.nn.Linear(64, 64), layer, torch.nn.Linear(64, 1)).to("cpu")


def gradient_of_first_layer(model):
    model.train().zero_grad()
    model(torch.ones(2, 64)).sum().backward()
    return model[0].weight.grad


def evaluate(model):
    with torch.no_grad():
        return model.eval()(torch.ones(2, 64)).sum()


def test_a_gradient_passes_after_an_evaluation_as_before():
    model = quantized_model()
    keep_trainable(model)
    before = gradient_of_first_layer(model).clone()
    assert before.abs().sum() > 0
    evaluate(model)
    torch.testing.assert_close(gradient_of_first_layer(model), before)


def test_inside_the_block_nothing_is_packed_and_afterwards_the_layer_is_as_it_was():
    model = quantized_model()
    flag = model[1].support_avx512bf16_for_cpu
    with unpacked_layers(model):
        evaluate(model)
        assert gradient_of_first_layer(model).abs().sum() > 0
    assert model[1].support_avx512bf16_for_cpu == flag


def test_a_layer_that_was_packed_is_refused():
    layer = torch.nn.Linear(2, 2)
    layer.support_avx512bf16_for_cpu = True
    layer.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(ValueError, match=r"4-bit layer '1' was evaluated before.*Load the model anew"):
        keep_trainable(torch.nn.Sequential(torch.nn.Linear(2, 2), layer))


def test_evaluation_of_a_packed_layer_is_what_the_refusal_is_about():
    """On other machines nothing is packed, and then nothing is refused."""
    model = quantized_model()
    if not model[1].support_avx512bf16_for_cpu:
        pytest.skip("needs a CPU with AVX512-BF16")
    evaluate(model)
    with pytest.raises(ValueError, match="Load the model anew"):
        keep_trainable(model)
