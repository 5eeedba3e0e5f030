"""Whether an installed dmpo-trl works, without the repository and the network: `python smoke.py`, in any folder."""

import subprocess
import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import dmpo_trl
from dmpo_trl import DMPOConfig, DMPOTrainer, score_completions

TITLES = ["Alien", "Babe", "Heidi", "Bambi"]


def main() -> None:
    """One step of training on a tiny model, its scores, and the command line."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", "Watched:", "Next:", *TITLES])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    rows = [
        {"prompt": f"Watched: {title} Next:", "chosen": " Alien", "rejected": [" Babe", " Heidi"]} for title in TITLES
    ]
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        args = DMPOConfig(f"{folder}/out", max_steps=1, use_cpu=True, bf16=False, save_strategy="no", report_to="none")
        trainer = DMPOTrainer(folder, args=args, train_dataset=Dataset.from_list(rows))
        loss = trainer.train().training_loss
    assert abs(loss - 0.6931) < 1e-3, loss  # log 2: policy and reference are equal before the first step
    (scores,) = score_completions(trainer.model, tokenizer, [rows[0]["prompt"]], [[" Alien", " Babe"]])
    assert len(scores.logps) == 2

    command = Path(sys.executable).with_name("dmpo-trl")
    assert "train" in subprocess.run([command, "--help"], check=True, capture_output=True, text=True).stdout
    print(f"dmpo-trl {dmpo_trl.__version__} in {Path(dmpo_trl.__file__).parent} works")


if __name__ == "__main__":
    main()
