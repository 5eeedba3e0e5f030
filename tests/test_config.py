import logging

import pytest
from transformers import HfArgumentParser
from trl import TrlParser

from dmpo_trl import DMPOConfig
from dmpo_trl.config import logger as config_logger

ON_A_CPU = {"output_dir": "out", "use_cpu": True, "bf16": False}


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
@pytest.mark.parametrize(("word", "value"), [("auto", "auto"), ("true", True), ("False", False)])
def test_options_of_ours_on_the_command_line(parser, word, value):
    arguments = [item for name, setting in ON_A_CPU.items() for item in (f"--{name}", str(setting))]
    arguments += ["--prefix_sharing", word, "--truncation_mode", "keep_completion", "--loss_type", "softmax", "sft"]
    config = parser(DMPOConfig).parse_args_into_dataclasses(arguments)[0]
    assert config.prefix_sharing == value
    assert type(config.prefix_sharing) is type(value)
    assert config.truncation_mode == "keep_completion"
    assert config.loss_type == ["softmax", "sft"]


@pytest.mark.parametrize("value", ["auto", True, False])
def test_prefix_sharing_in_python(value):
    assert DMPOConfig(**ON_A_CPU, prefix_sharing=value).prefix_sharing == value


def test_other_values_are_refused():
    with pytest.raises(ValueError, match="must be 'auto', True or False, got 'maybe'"):
        DMPOConfig(**ON_A_CPU, prefix_sharing="maybe")


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_a_beta_that_teaches_nothing_or_the_opposite_is_refused(beta):
    with pytest.raises(ValueError, match=rf"`beta` must be above 0, got {beta}"):
        DMPOConfig(**ON_A_CPU, beta=beta)


def test_defaults():
    config = DMPOConfig(**ON_A_CPU)
    assert (config.loss_type, config.prefix_sharing, config.truncation_mode) == (["dmpo"], "auto", "keep_start")


@pytest.fixture
def has_bf16(monkeypatch):
    """Say whether there is a GPU that computes in bf16."""

    def set_to(value):
        for module in ("dmpo_trl.config", "transformers.training_args"):
            monkeypatch.setattr(f"{module}.is_torch_bf16_gpu_available", lambda: value)

    config_logger.warning_once.cache_clear()
    return set_to


@pytest.mark.parametrize("options", [{}, {"use_cpu": True}], ids=str)
def test_without_a_device_for_bf16_training_is_in_float32_with_one_line(has_bf16, caplog, options):
    has_bf16(value=bool(options))  # a GPU that is not used is none
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert DMPOConfig("out", **options).bf16 is False
    assert [record.getMessage() for record in caplog.records if "float32" in record.getMessage()] == [
        "No device for bf16 is in use: training in float32."
    ]


def test_bf16_that_was_asked_for_and_cannot_be_had_is_refused(has_bf16):
    has_bf16(value=False)
    with pytest.raises(ValueError, match=r"`bf16=True` was asked for.* Leave `bf16` out.* `use_cpu=True`"):
        DMPOConfig("out", bf16=True)
    assert DMPOConfig("out", bf16=True, use_cpu=True).bf16 is True


def test_where_bf16_can_be_had_it_is_the_default(has_bf16):
    has_bf16(value=True)
    assert DMPOConfig("out").bf16 is True
    assert DMPOConfig("out", bf16=False).bf16 is False


def test_float16_is_not_called_float32(has_bf16, caplog):
    has_bf16(value=False)
    assert DMPOConfig("out", fp16=True).bf16 is False
    assert "float32" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1, got 0"),
        ({"per_device_eval_batch_size": -1}, "`per_device_eval_batch_size` must be at least 1, got -1"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1, got 0"),
        ({"logging_steps": float("inf")}, "`logging_steps` must be a finite number, got inf"),
        ({"warmup_steps": float("nan")}, "`warmup_steps` must be a finite number, got nan"),
        ({"max_grad_norm": float("nan")}, "`max_grad_norm` must be a finite number, got nan"),
        ({"seed": -1}, "`seed` must be at least 0 and below"),
        ({"data_seed": 2**32}, "`data_seed` must be at least 0 and below"),
    ],
)
def test_numbers_that_no_training_can_have_are_refused_by_name(options, message, tmp_path):
    DMPOConfig(str(tmp_path), bf16=False, max_grad_norm=float("inf"), seed=0, data_seed=2**32 - 1)
    with pytest.raises(ValueError, match=message):
        DMPOConfig(str(tmp_path), bf16=False, **options)
