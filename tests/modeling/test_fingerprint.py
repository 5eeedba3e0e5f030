from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import make_model, make_tokenizer

from dmpo_trl.modeling.fingerprint import config_of, hash_of_model, hash_of_tokenizer, weight_buffers


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


def test_adapters_and_the_end_of_a_generation_count(model):
    def with_adapter(**options) -> object:
        torch.manual_seed(0)
        return get_peft_model(deepcopy(model), LoraConfig(target_modules=["q_proj", "v_proj"], **options))

    first = hash_of_model(with_adapter(lora_alpha=4))
    assert hash_of_model(with_adapter(lora_alpha=4)) == first
    assert hash_of_model(with_adapter(lora_alpha=40)) != first  # of equal weights
    other = deepcopy(model)
    assert hash_of_model(other) == hash_of_model(model)
    other.generation_config.eos_token_id = 77
    assert hash_of_model(other) != hash_of_model(model)


def test_a_model_whose_weights_are_elsewhere_is_like_no_other(model):
    """Its parts on the disk, or in other processes, are not known, so that no result is taken for its own."""
    elsewhere = deepcopy(model).to("meta")
    assert len({hash_of_model(elsewhere), hash_of_model(elsewhere), hash_of_model(model)}) == 3


def test_of_a_tokenizer_its_special_tokens_count_and_its_last_call_does_not():
    tokenizer = make_tokenizer()
    first = hash_of_tokenizer(tokenizer)
    tokenizer(["Alien", "Aliens and more"], padding=True, truncation=True, max_length=3)
    assert hash_of_tokenizer(tokenizer) == first == hash_of_tokenizer(make_tokenizer())
    tokenizer.eos_token = tokenizer.pad_token
    assert hash_of_tokenizer(tokenizer) != first
