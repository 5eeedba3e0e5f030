"""The ready configurations, read as `accelerate launch` reads them."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from support.launch import CONFIGS

KINDS = {
    "single_gpu": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


def test_there_is_a_configuration_for_each_way():
    assert {path.stem for path in CONFIGS.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_configuration(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == "bf16"
    assert config.fsdp_config.get("fsdp_version") == (2 if name == "fsdp2" else None)
    stage = {"deepspeed_zero2": 2, "deepspeed_zero3": 3}.get(name)
    assert config.deepspeed_config.get("zero_stage") == stage
