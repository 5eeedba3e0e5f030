import pytest
from transformers import HfArgumentParser
from trl import TrlParser

from dmpo_trl import DMPOConfig

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


def test_defaults():
    config = DMPOConfig(**ON_A_CPU)
    assert (config.loss_type, config.prefix_sharing, config.truncation_mode) == (["dmpo"], "auto", "keep_start")


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
