"""Names the method of TRL that moved when a release changes one that we override or lean on."""

import hashlib
import importlib.metadata
import inspect

import pytest
import trl.data_utils
import trl.trainer.utils
from trl import DPOTrainer

# sha256 of the source, by the releases that the whole suite passed on. After reading what changed in a new release and
# running the suite on it, add its hash: `python tests/test_seams.py` prints them.
KNOWN: dict[str, dict[str, str]] = {
    "1.16.0": {
        "DPOTrainer.__init__": "632f447c71dcb043",
        "DPOTrainer._prepare_dataset": "35e349e8e8266df4",
        "DPOTrainer._set_signature_columns_if_needed": "71225a628baed4cb",
        "DPOTrainer._precompute_ref_logps": "f2c098c7da6ca701",
        "DPOTrainer.compute_ref_log_probs": "90611af9cbadb8ec",
        "DPOTrainer._compute_loss": "5e58a1699e0d76cd",
        "DPOTrainer.compute_loss": "c453890e84beb4cb",
        "DPOTrainer.evaluate": "c4ef502ba33a335a",
        "data_utils._tokenize": "5fc8cbcb4cacebc8",
        "utils.add_fused_lm_head": "422d009f04b66659",
        "utils.use_adapter": "edd0e493f99fa685",
        "utils.maybe_gather_lm_head_ctx": "d4d59d01150623ce",
        "utils.global_then_local_main_first": "eb8b684b11234500",
    },
}

SEAMS = {
    "DPOTrainer.__init__": DPOTrainer.__init__,
    "DPOTrainer._prepare_dataset": DPOTrainer._prepare_dataset,
    "DPOTrainer._set_signature_columns_if_needed": DPOTrainer._set_signature_columns_if_needed,
    "DPOTrainer._precompute_ref_logps": DPOTrainer._precompute_ref_logps,
    "DPOTrainer.compute_ref_log_probs": DPOTrainer.compute_ref_log_probs,
    "DPOTrainer._compute_loss": DPOTrainer._compute_loss,
    "DPOTrainer.compute_loss": DPOTrainer.compute_loss,
    "DPOTrainer.evaluate": DPOTrainer.evaluate,
    "data_utils._tokenize": trl.data_utils._tokenize,
    "utils.add_fused_lm_head": trl.trainer.utils.add_fused_lm_head,
    "utils.use_adapter": trl.trainer.utils.use_adapter,
    "utils.maybe_gather_lm_head_ctx": trl.trainer.utils.maybe_gather_lm_head_ctx,
    "utils.global_then_local_main_first": trl.trainer.utils.global_then_local_main_first,
}


def fingerprint(function) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", SEAMS)
def test_seam_is_one_that_the_suite_passed_on(name):
    version = importlib.metadata.version("trl")
    known = {hashes[name] for hashes in KNOWN.values()}
    assert fingerprint(SEAMS[name]) in known, (
        f"trl {version} changed {name}, on which dmpo_trl/trainer.py builds. Read the change; if the rest of the "
        "suite passes, add this release to KNOWN."
    )


if __name__ == "__main__":
    print(importlib.metadata.version("trl"), {name: fingerprint(function) for name, function in SEAMS.items()})
