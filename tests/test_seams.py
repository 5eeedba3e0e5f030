"""Names the method that moved when a release of TRL or transformers changes one that we override or lean on."""

import ast
import hashlib
import inspect
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name

import pytest
from trl import DPOTrainer

import dmpo_trl
from dmpo_trl import DMPOTrainer

# sha256 of each source that the suite passed with, and a release that has it. After reading what a new release changed
# and running the suite on it, add what `python tests/test_seams.py` prints.
KNOWN: dict[str, dict[str, str]] = {
    "trl.cli.accelerate_config:resolve_accelerate_config_argument": {"9b27586cf1e095b6": "trl 1.15.0"},
    "trl.data_utils:_tokenize": {"5fc8cbcb4cacebc8": "trl 1.15.0"},
    "trl.data_utils:apply_chat_template": {"3fe8ce2a8af3693a": "trl 1.15.0"},
    "trl.data_utils:prepare_multimodal_messages": {"95c217c58648d8c0": "trl 1.15.0"},
    "trl.models.utils:disable_gradient_checkpointing": {"1f3a5e7ca9cb5902": "trl 1.15.0"},
    "trl.scripts.env:print_env": {"7add52edf2cc8b77": "trl 1.15.0", "e189cf3b534ad00b": "trl 1.16.0"},
    "trl.trainer.dpo_trainer:DataCollatorForPreference": {"e95daf5d703eb2c3": "trl 1.15.0"},
    "trl.trainer.dpo_trainer:DataCollatorForVisionPreference": {"21ee508606b0b010": "trl 1.15.0"},
    "trl.trainer.utils:add_fused_lm_head": {"2722842b5d139e76": "trl 1.15.0", "422d009f04b66659": "trl 1.16.0"},
    "trl.trainer.utils:flush_left": {"8454fdab9ffeacb4": "trl 1.15.0"},
    "trl.trainer.utils:get_config_model_id": {"a7ceae253db01c6f": "trl 1.15.0"},
    "trl.trainer.utils:global_then_local_main_first": {"eb8b684b11234500": "trl 1.15.0"},
    "trl.trainer.utils:use_adapter": {"edd0e493f99fa685": "trl 1.15.0"},
    "trl:DPOTrainer.__init__": {"f9b212f7e3772056": "trl 1.15.0", "632f447c71dcb043": "trl 1.16.0"},
    "trl:DPOTrainer._compute_loss": {"5e58a1699e0d76cd": "trl 1.15.0"},
    "trl:DPOTrainer._get_dataloader": {
        "5f975c2449044c83": "transformers 5.17.0",
        "d1296dbd4dcb6a20": "transformers 5.23.0",
    },
    "trl:DPOTrainer._get_train_sampler": {"1580d7493244e637": "transformers 5.17.0"},
    "trl:DPOTrainer._precompute_ref_logps": {"f2c098c7da6ca701": "trl 1.15.0"},
    "trl:DPOTrainer._prepare_dataset": {"35e349e8e8266df4": "trl 1.15.0"},
    "trl:DPOTrainer._save_checkpoint": {"b6ee0a370c266b6f": "trl 1.15.0"},
    "trl:DPOTrainer._save_rng_state": {"27a97d1061240f42": "transformers 5.17.0"},
    "trl:DPOTrainer._set_signature_columns_if_needed": {"71225a628baed4cb": "trl 1.15.0"},
    "trl:DPOTrainer.compute_loss": {"c453890e84beb4cb": "trl 1.15.0"},
    "trl:DPOTrainer.compute_ref_log_probs": {"90611af9cbadb8ec": "trl 1.15.0"},
    "trl:DPOTrainer.create_model_card": {"4f8a407fd9fd3f6e": "trl 1.15.0"},
    "trl:DPOTrainer.evaluate": {"c4ef502ba33a335a": "trl 1.15.0"},
    "trl:DPOTrainer.train": {"f2ab74639cb0528d": "transformers 5.17.0", "9a3c2bcd066d8f99": "transformers 5.23.0"},
}
# Leant on without being overridden
LEANT_ON = {
    "trl:DPOTrainer._set_signature_columns_if_needed",
    "trl:DPOTrainer.compute_loss",
    "trl:DPOTrainer.evaluate",
    "trl.trainer.utils:add_fused_lm_head",
}
PUBLIC = {"trl.kernels", "trl.scripts"}


def overridden() -> set[str]:
    """What `DMPOTrainer` overrides of its parent."""
    names = set(vars(DMPOTrainer)) - {"__module__", "__doc__", "__annotations__"}
    return {f"trl:DPOTrainer.{name}" for name in names if callable(getattr(DPOTrainer, name, None))}


def imported() -> set[str]:
    """What the package imports from TRL's inner modules."""
    names = set()
    for file in Path(dmpo_trl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            module = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and module.startswith("trl.") and module not in PUBLIC:
                names |= {f"{module}:{alias.name}" for alias in node.names}
    return names


def release(source) -> str:
    package = source.__module__.split(".")[0]
    return f"{package} {version(package)}"


def fingerprint(source) -> str:
    return hashlib.sha256(inspect.getsource(source).encode()).hexdigest()[:16]


def problem(seam: str) -> str | None:
    """What moved, and what to do; None if nothing did."""
    try:
        source = resolve_name(seam)
    except (AttributeError, ImportError):
        return f"trl {version('trl')} has no {seam} any more, on which dmpo_trl builds."
    if fingerprint(source) in KNOWN[seam]:
        return None
    return (
        f"{release(source)} changed {seam}, on which dmpo_trl builds. Read the change; if the rest of "
        "the suite passes, add what `python tests/test_seams.py` prints to KNOWN."
    )


@pytest.mark.parametrize("seam", KNOWN)
def test_seam_is_one_that_the_suite_passed_on(seam):
    assert problem(seam) is None, problem(seam)


def test_every_seam_is_known():
    assert set(KNOWN) == overridden() | imported() | LEANT_ON


def test_names_the_method_that_was_renamed(monkeypatch):
    monkeypatch.setattr(DPOTrainer, "_compute_the_loss", DPOTrainer._compute_loss, raising=False)
    monkeypatch.delattr(DPOTrainer, "_compute_loss")
    assert "has no trl:DPOTrainer._compute_loss any more" in problem("trl:DPOTrainer._compute_loss")


def test_names_the_method_that_changed(monkeypatch):
    monkeypatch.setattr(DPOTrainer, "_compute_loss", DPOTrainer.evaluate)
    assert "changed trl:DPOTrainer._compute_loss, on which" in problem("trl:DPOTrainer._compute_loss")


if __name__ == "__main__":
    for seam in sorted(overridden() | imported() | LEANT_ON):
        source = resolve_name(seam)
        print(f'    "{seam}": {{"{fingerprint(source)}": "{release(source)}"}},')
