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
