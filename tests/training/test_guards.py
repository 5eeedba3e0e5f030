"""Steps use no kernel that is known to be wrong, and gradients that are no numbers reach no weight."""

import copy
import logging

import pytest
import torch
from support import make_model, make_rows, make_trainer
from transformers.utils.logging import warning_once

from dmpo_trl.training.checks import check_gradient


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_nan_stops_the_run_before_it_reaches_a_weight(tmp_path, max_grad_norm):
    """As that of cuDNN's masked attention was, on a finite loss; clipping makes all gradients NaN."""
    trainer = make_trainer(tmp_path, make_rows((2, 1, 3)), max_steps=5, max_grad_norm=max_grad_norm)
    weights = []

    def spoil(gradient):
        weights.append(copy.deepcopy(trainer.model.state_dict()))
        return gradient * (float("nan") if len(weights) == 3 else 1)

    trainer.model.model.layers[0].self_attn.q_proj.weight.register_hook(spoil)
    expected = r"gradients of a batch are not finite after 2 optimizer steps, though .* still those of before this"
    with pytest.raises(FloatingPointError, match=expected):
        trainer.train()
    torch.testing.assert_close(trainer.model.state_dict(), weights[2], rtol=0, atol=0)
    assert not torch.equal(weights[2]["lm_head.weight"], weights[1]["lm_head.weight"])


def test_what_is_said_of_weights_that_have_been_updated():
    with pytest.raises(FloatingPointError, match=r"The weights may not be either; the last checkpoint is good"):
        check_gradient(float("inf"), 4, False, before_update=False)
    check_gradient(1e30, 4, False)


def test_in_float16_it_is_a_warning(caplog):
    warning_once.cache_clear()  # another test may have been told
    with caplog.at_level(logging.WARNING):
        check_gradient(float("inf"), 4, True)
    assert "gradients of a batch are not finite. float16" in caplog.text


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_step_attends_through_cudnn(tmp_path, checkpointing, monkeypatch):
    """Neither the policy nor the reference, nor what the backward pass computes again."""
    trainer = make_trainer(
        tmp_path,
        make_rows((2, 1)),
        max_steps=1,
        model=make_model(),
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    allowed = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def noted(*args, **kwargs):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    trainer.train()
    layers = trainer.model.config.num_hidden_layers
    assert len(allowed) == (3 if checkpointing else 2) * layers
    assert not any(allowed)
    assert torch.backends.cuda.cudnn_sdp_enabled()
