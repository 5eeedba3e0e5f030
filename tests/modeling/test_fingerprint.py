from copy import deepcopy

import pytest
import torch
from support import make_model

from dmpo_trl.modeling.fingerprint import config_of, weight_buffers


def fingerprint(model) -> list[bytes]:
    return [bytes(part) for part in weight_buffers(dict(model.named_parameters()))]


@pytest.fixture(scope="module")
def model():
    return make_model("llama")


def test_a_copy_has_the_same_and_another_weight_another(model):
    other = deepcopy(model)
    assert fingerprint(other) == fingerprint(model)
    with torch.no_grad():
        other.lm_head.weight[3, 3] += 1e-3
    assert fingerprint(other) != fingerprint(model)
    assert fingerprint(deepcopy(model).bfloat16()) != fingerprint(model)


def test_of_weights_that_are_not_in_memory_name_type_and_shape_count():
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 3, bias=False)
    assert fingerprint(layer) == [b"weight torch.float32 (3, 2)"]


def test_where_a_model_lies_does_not_change_its_numbers(model):
    other = deepcopy(model)
    other.config._name_or_path = "elsewhere"
    assert config_of(other) == config_of(model)
    other.config.rms_norm_eps *= 2
    assert config_of(other) != config_of(model)
