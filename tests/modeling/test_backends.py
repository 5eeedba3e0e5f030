"""Settings of torch inside and after a block."""

import contextlib

import pytest
import torch
from support import make_model

from dmpo_trl.modeling.backends import ieee_float32, masks_off_cudnn
from dmpo_trl.modeling.probe import prepare_for_scoring

CUDA, CPU = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def read(what):
    """A setting; torch does not let it be read where its two ways to set it disagree."""
    try:
        return what()
    except RuntimeError:
        return "refused"


def settings():
    older = (torch.get_float32_matmul_precision, lambda: CUDA.allow_tf32)
    return (CUDA.fp32_precision, CPU.fp32_precision, *map(read, older))


@pytest.fixture(autouse=True)
def _as_before():
    everywhere, cuda, cpu = torch.backends.fp32_precision, CUDA.fp32_precision, CPU.fp32_precision
    yield
    torch.backends.fp32_precision = everywhere
    torch.set_float32_matmul_precision("highest")
    CUDA.fp32_precision, CPU.fp32_precision = cuda, cpu


def by_the_old_way():
    torch.set_float32_matmul_precision("high")


def by_allowing():
    CUDA.allow_tf32 = True


def by_the_new_way():
    CUDA.fp32_precision = "tf32"


def by_transformers():
    """As `tf32=True` does."""
    torch.backends.fp32_precision = "tf32"


def not_at_all():
    pass


WAYS = [by_the_old_way, by_allowing, by_the_new_way, by_transformers, not_at_all]


@pytest.mark.parametrize("set_by_user", WAYS)
def test_products_are_float32_inside_and_as_the_user_wants_after(set_by_user):
    set_by_user()
    before = settings()
    with ieee_float32():
        assert settings()[:2] == ("ieee", "ieee")
        if set_by_user not in (by_the_new_way, by_transformers):  # what could be read before can be read inside
            assert settings()[2:] == ("highest", False)
    assert settings() == before
    with contextlib.suppress(KeyError), ieee_float32():
        raise KeyError
    assert settings() == before


def test_a_setting_for_everything_is_followed_afterwards_too():
    by_transformers()
    with ieee_float32():
        pass
    torch.backends.fp32_precision = "ieee"
    assert CUDA.fp32_precision == "ieee"


def tf32(tensor):
    """Rounded to the 10 bits of mantissa that a product in TF32 reads."""
    step = torch.ldexp(torch.ones_like(tensor), torch.frexp(tensor).exponent - 11)
    return (tensor / step).round() * step


@pytest.mark.parametrize("set_by_user", WAYS[:4])
def test_a_model_shares_prefixes_whatever_products_the_user_wants(set_by_user):
    """A GPU rounds operands where this is set, and so do these layers; the probe would blame the model."""
    set_by_user()
    model = make_model("llama", num_hidden_layers=8)

    def as_a_gpu_does(layer, arguments):
        return (tf32(arguments[0]) if CUDA.fp32_precision == "tf32" else arguments[0],)

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(as_a_gpu_does)
    ids = torch.arange(9, 29)[None]
    rounded = model(ids).logits
    with ieee_float32():
        assert (model(ids).logits - rounded).abs().max() > 1e-4  # it would be seen
    assert prepare_for_scoring(model, model, True) is True


@pytest.mark.parametrize("before", [True, False])
def test_masked_attention_is_off_cudnn_inside_and_as_before_after(before):
    own = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        with contextlib.suppress(KeyError), masks_off_cudnn():
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise KeyError
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(own)
