"""What several test files need; each name stands in the file of its subject."""

from .models import COPYING, SHARING, TEXT_SIZES, VOCAB_SIZE, make_model, make_tokenizer, save_model
from .oracle import (
    assert_gradients_agree,
    compare_with_oracle,
    gradients,
    layout_logps,
    naive_dmpo_loss,
    naive_logp,
    naive_logps,
    naive_reference,
    perturb,
)
from .pages import blocks, follow
from .rows import RAGGED, WORDS, make_rows, prompts_and_completions, ragged_examples
from .scores import COMPLETIONS, PROMPTS, TITLES, check_scores
from .scripts import ROOT, SCRIPTS, cpu_environment, load_script
from .trainer import dpo_and_dmpo, loss_gradients_and_metrics, make_config, make_trainer
from .users import make_users

__all__ = [
    "COMPLETIONS",
    "COPYING",
    "PROMPTS",
    "RAGGED",
    "ROOT",
    "SCRIPTS",
    "SHARING",
    "TEXT_SIZES",
    "TITLES",
    "VOCAB_SIZE",
    "WORDS",
    "assert_gradients_agree",
    "blocks",
    "check_scores",
    "compare_with_oracle",
    "cpu_environment",
    "dpo_and_dmpo",
    "follow",
    "gradients",
    "layout_logps",
    "load_script",
    "loss_gradients_and_metrics",
    "make_config",
    "make_model",
    "make_rows",
    "make_tokenizer",
    "make_trainer",
    "make_users",
    "naive_dmpo_loss",
    "naive_logp",
    "naive_logps",
    "naive_reference",
    "perturb",
    "prompts_and_completions",
    "ragged_examples",
    "save_model",
]
