"""Names what moved when a release of TRL, transformers, datasets, accelerate or peft changes a private part in use.

Collected from the package's syntax trees: what `DMPOTrainer` overrides, imports from inner modules, and names with a
leading underscore that the package does not define itself. Functions and classes are known by their source, attributes
by their presence on a real object.
"""

import argparse
import ast
import hashlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from support import dpo_and_dmpo, make_model
from transformers.utils.hub import cached_files
from trl import DPOTrainer

import dmpo_trl
from dmpo_trl import DMPOTrainer

# sha256 of each source that the suite passed with, and a release that has it. After reading what a new release changed
# and running the suite on it, add what `python tests/test_seams.py` prints.
KNOWN: dict[str, dict[str, str]] = {
    "accelerate.commands.launch:launch_command": {"11fa46fe03e8d09e": "accelerate 1.10.1"},
    "accelerate.commands.launch:launch_command_parser": {
        "5392e800c4cdae2e": "accelerate 1.10.1",
        "5be48632896a444a": "accelerate 1.15.0",
    },
    "datasets.exceptions:DatasetsError": {"c8e502ef57f9e914": "datasets 5.2.0"},
    "datasets.fingerprint:Hasher": {"278301b789d0509d": "datasets 4.7.0"},
    "datasets.fingerprint:get_temporary_cache_files_directory": {"360b70d63b6e90f5": "datasets 4.7.0"},
    "datasets:Dataset._get_cache_file_path": {"fbafc06c1d2e11c3": "datasets 4.7.0"},
    "peft.tuners.tuners_utils:BaseTunerLayer": {"3e51e6e0256e8030": "peft 0.21.2"},
    "peft.tuners.tuners_utils:check_target_module_exists": {"cd4fbbeb3b235816": "peft 0.21.2"},
    "transformers.data.data_collator:DataCollatorMixin": {"b10e5c115c7f7417": "transformers 5.17.0"},
    "transformers.masking_utils:ALL_MASK_ATTENTION_FUNCTIONS": {"11f19252e5a79327": "transformers 5.17.0"},
    "transformers.masking_utils:causal_mask_function": {"e8566f1e2978274a": "transformers 5.17.0"},
    "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS": {
        "b5b1ad306aefecfb": "transformers 5.17.0",
        "6ed7bf8337578f6a": "transformers 5.23.0",
    },
    "transformers.models.mixtral.modeling_mixtral:load_balancing_loss_func": {
        "f224b99e93782bfe": "transformers 5.17.0",
        "ba57772e23a0d78b": "transformers 5.23.0",
    },
    "transformers.utils.peft_utils:find_adapter_config_file": {
        "4959cea80ac8cb87": "transformers 5.17.0",
        "a8c0ba814c351837": "transformers 5.23.0",
    },
    "trl.cli.accelerate_config:resolve_accelerate_config_argument": {"9b27586cf1e095b6": "trl 1.15.0"},
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
    "trl:DPOTrainer._get_grad_norm": {"913ba6f52f074d10": "transformers 5.17.0"},
    "trl:DPOTrainer._get_dataloader": {
        "5f975c2449044c83": "transformers 5.17.0",
        "d1296dbd4dcb6a20": "transformers 5.23.0",
    },
    "trl:DPOTrainer._get_output_dir": {"97172085342ac46c": "transformers 5.17.0"},
    "trl:DPOTrainer._get_train_sampler": {"1580d7493244e637": "transformers 5.17.0"},
    "trl:DPOTrainer._init_training_state": {"8fbd17ebb7d3793d": "transformers 5.17.0"},
    "trl:DPOTrainer._precompute_ref_logps": {"f2c098c7da6ca701": "trl 1.15.0"},
    "trl:DPOTrainer._prepare_dataset": {"35e349e8e8266df4": "trl 1.15.0"},
    "trl:DPOTrainer._save_checkpoint": {"b6ee0a370c266b6f": "trl 1.15.0"},
    "trl:DPOTrainer._save_rng_state": {"27a97d1061240f42": "transformers 5.17.0"},
    "trl:DPOTrainer._set_signature_columns_if_needed": {"71225a628baed4cb": "trl 1.15.0"},
    "trl:DPOTrainer.compute_loss": {"c453890e84beb4cb": "trl 1.15.0"},
    "trl:DPOTrainer.compute_ref_log_probs": {"90611af9cbadb8ec": "trl 1.15.0"},
    "trl:DPOTrainer.create_model_card": {"4f8a407fd9fd3f6e": "trl 1.15.0"},
    "trl:DPOTrainer.evaluate": {"c4ef502ba33a335a": "trl 1.15.0"},
    "trl:DPOTrainer.training_step": {"bba41f264647016a": "trl 1.15.0"},
    "trl:DPOTrainer.train": {"f2ab74639cb0528d": "transformers 5.17.0", "9a3c2bcd066d8f99": "transformers 5.23.0"},
}
# Leant on without being overridden
LEANT_ON = {
    "datasets:Dataset._get_cache_file_path",
    "trl:DPOTrainer._set_signature_columns_if_needed",
    "trl:DPOTrainer.compute_loss",
    "trl:DPOTrainer.evaluate",
    "trl.trainer.utils:add_fused_lm_head",
}
LIBRARIES = ("trl", "transformers", "datasets", "accelerate", "peft")
# Inner modules that their libraries document
PUBLIC = {"accelerate.utils", "transformers.utils", "trl.kernels", "trl.scripts"}
# Set by the parent trainer on itself, and used
TRAINERS = {
    "_is_vision_dataset",
    "_metrics",
    "_precompute_model_hash",
    "_signature_columns",
    "_total_train_tokens",
    "_tp_size",
    "_train_batch_size",
}


def _evaluated_by_accelerate() -> torch.nn.Module:
    return Accelerator(cpu=True).prepare_model(make_model(), evaluation_mode=True)


# Other attributes with a leading underscore, and the real object that has to have each
OTHERS: dict[str, Callable[[], Any]] = {
    "_actions": argparse.ArgumentParser,
    "_attn_implementation": lambda: make_model().config,
    "_fingerprint": lambda: Dataset.from_list([{"a": 1}]),
    "_get_cache_file_path": lambda: Dataset.from_list([{"a": 1}]),
    "_is_accelerate_prepared": _evaluated_by_accelerate,
}
# Keywords with a leading underscore, and the function that has to take each
KEYWORDS = {"_raise_exceptions_for_missing_entries": cached_files}
# The package's own: a column, an attribute that it sets on scored models, one of classes that are no trainers
OURS = {"_first", "_tokenizer"}


@cache
def nodes() -> tuple[ast.AST, ...]:
    files = sorted(Path(dmpo_trl.__file__).parent.rglob("*.py"))
    return tuple(node for file in files for node in ast.walk(ast.parse(file.read_text())))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def overridden() -> set[str]:
    """What `DMPOTrainer` and the package's classes above it override of their parent."""
    own = DMPOTrainer.__mro__[: DMPOTrainer.__mro__.index(DPOTrainer)]
    names = {name for ours in own for name in vars(ours)} - {"__module__", "__doc__", "__annotations__"}
    return {f"trl:DPOTrainer.{name}" for name in names if callable(getattr(DPOTrainer, name, None))}


def imported() -> set[str]:
    """What the package imports from the libraries' inner modules, and private names from any of theirs."""
    names = set()
    for node in nodes():
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] in LIBRARIES:
            inner = "." in node.module and node.module not in PUBLIC
            names |= {f"{node.module}:{alias.name}" for alias in node.names if inner or is_private(alias.name)}
    return names


def _defined() -> Iterator[str]:
    yield from OURS
    for node in nodes():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used() -> set[str]:
    """Private names that the package accesses or passes by keyword, its own too."""
    names = {node.attr for node in nodes() if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in nodes() if isinstance(node, ast.keyword) and node.arg}
    return {name for name in names if is_private(name)}


def inherited() -> set[str]:
    """Private methods of the parent trainer that the package calls."""
    return {name for name in used() if callable(getattr(DPOTrainer, name, None))}


def seams() -> set[str]:
    """All that is known by its source."""
    return overridden() | imported() | {f"trl:DPOTrainer.{name}" for name in inherited()} | LEANT_ON


def with_source(seam: str) -> Any:
    """The function or class; of a registry, its class."""
    found = resolve_name(seam)
    return found if inspect.isroutine(found) or inspect.isclass(found) else type(found)


def release(source: Any) -> str:
    package = source.__module__.split(".")[0]
    return f"{package} {version(package)}"


def fingerprint(source: Any) -> str:
    return hashlib.sha256(inspect.getsource(source).encode()).hexdigest()[:16]


def problem(seam: str) -> str | None:
    """What moved, and what to do; None if nothing did."""
    try:
        source = with_source(seam)
    except (AttributeError, ImportError):
        package = seam.split(":")[0].split(".")[0]
        return f"{package} {version(package)} has no {seam} any more, on which dmpo_trl builds."
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
    assert set(KNOWN) == seams()


def test_every_private_name_is_known():
    """What is neither the package's own nor a method of the parent stands in TRAINERS, OTHERS or KEYWORDS."""
    foreign = used() - set(_defined()) - inherited()
    assert foreign - TRAINERS == set(OTHERS) | set(KEYWORDS)


@pytest.mark.parametrize("name", OTHERS)
def test_the_attribute_is_there(name):
    assert hasattr(OTHERS[name](), name)


@pytest.mark.parametrize("name", KEYWORDS)
def test_the_keyword_is_there(name):
    assert name in inspect.signature(KEYWORDS[name]).parameters


def test_the_parent_trainer_has_the_attributes(tmp_path):
    """Also those that `DMPOTrainer` sets anew."""
    theirs, _ = dpo_and_dmpo(tmp_path, max_steps=1)
    theirs.train()
    assert (used() - OURS) & set(vars(theirs)) == TRAINERS


def test_names_the_method_that_was_renamed(monkeypatch):
    monkeypatch.setattr(DPOTrainer, "_compute_the_loss", DPOTrainer._compute_loss, raising=False)
    monkeypatch.delattr(DPOTrainer, "_compute_loss")
    assert "has no trl:DPOTrainer._compute_loss any more" in problem("trl:DPOTrainer._compute_loss")


def test_names_the_method_that_changed(monkeypatch):
    monkeypatch.setattr(DPOTrainer, "_compute_loss", DPOTrainer.evaluate)
    assert "changed trl:DPOTrainer._compute_loss, on which" in problem("trl:DPOTrainer._compute_loss")


if __name__ == "__main__":
    for seam in sorted(seams()):
        source = with_source(seam)
        print(f'    "{seam}": {{"{fingerprint(source)}": "{release(source)}"}},')
