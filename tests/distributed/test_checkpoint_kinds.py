"""A checkpoint is refused where its optimizer's state has another form than this launch's."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from dmpo_trl.training.distributed import check_checkpoint_kind

FILES = {"plain": "optimizer.pt", "FSDP": "pytorch_model_fsdp.bin", "DeepSpeed": "global_step2"}
LAUNCHES = {
    DistributedType.NO: "plain",
    DistributedType.MULTI_GPU: "plain",
    DistributedType.FSDP: "FSDP",
    DistributedType.DEEPSPEED: "DeepSpeed",
}


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("written", FILES)
def test_checkpoints_go_on_with_what_wrote_them(tmp_path, written, launch):
    (tmp_path / FILES[written]).touch()
    accelerator = SimpleNamespace(distributed_type=launch)
    if LAUNCHES[launch] == written:
        check_checkpoint_kind(str(tmp_path), accelerator)
        return
    with pytest.raises(ValueError, match=r"Launch with the accelerate config that wrote it, or .*ref_model"):
        check_checkpoint_kind(str(tmp_path), accelerator)
