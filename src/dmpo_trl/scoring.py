"""Score completions with a language model, all completions of a prompt in one forward."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .collator import lay_out
from .contract import tokenize_completions
from .probe import prepare_for_scoring

Text = str | list[dict[str, Any]]


@dataclass(frozen=True)
class CompletionScores:
    """Scores of the completions of one prompt.

    Attributes:
        logps: Summed log-prob of each completion given the prompt, in nats, (N,).
        lengths: Its number of tokens, (N,).
    """

    logps: np.ndarray
    lengths: np.ndarray


def score_completions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    completions: Sequence[Sequence[Text]],
    *,
    prefix_sharing: str | bool = "auto",
    tokens_per_batch: int = 4096,
    progress: str | None = None,
) -> list[CompletionScores]:
    """Log-probs of completions given their prompts, each prompt computed once where the model allows it.

    Args:
        model: A causal language model of transformers, or a `PeftModel` around one.
        tokenizer: Its tokenizer.
        prompts: Texts, or lists of messages.
        completions: For each prompt, any number of completions of the same kind. Texts get the end-of-sequence token
            appended, as in training.
        prefix_sharing: See `DMPOConfig.prefix_sharing`.
        tokens_per_batch: Bound on the tokens of a forward. A single prompt with its completions may exceed it.
        progress: Label of a progress bar; None for no bar.

    Returns:
        The scores, in the order of `prompts`.

    Raises:
        ValueError: The numbers of prompts and of lists of completions differ, a list is empty, or
            `prefix_sharing=True` and the model cannot.
    """
    if len(prompts) != len(completions):
        raise ValueError(
            f"{len(prompts)} prompts, but {len(completions)} lists of completions: give one list a prompt."
        )
    for index, options in enumerate(completions):
        if len(options) == 0:
            raise ValueError(f"Prompt {index} has no completions to score: leave it out, or give it some.")
    base_model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    share = prepare_for_scoring(model, base_model, prefix_sharing)
    examples = [
        tokenize_completions(tokenizer, prompt, options, eos_token=tokenizer.eos_token)
        for prompt, options in zip(prompts, completions, strict=True)
    ]
    pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    device = base_model.get_input_embeddings().weight.device
    scores: dict[int, CompletionScores] = {}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), tqdm(total=len(examples), desc=progress, disable=progress is None) as bar:
            for indices in _batches(examples, share, tokens_per_batch):
                chosen_examples = [examples[i] for i in indices]
                batch = lay_out(
                    [prompt for prompt, _ in chosen_examples],
                    [options for _, options in chosen_examples],
                    prefix_sharing=share,
                    pad_token_id=pad_token_id,
                )
                for index, score in zip(indices, _score(model, batch, chosen_examples, device), strict=True):
                    scores[index] = score
                bar.update(len(indices))
    finally:
        model.train(training)
    return [scores[index] for index in range(len(examples))]


Example = tuple[list[int], list[list[int]]]


def _batches(examples: list[Example], share: bool, tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of examples of similar size, as many as the bound allows."""

    def tokens(example: Example) -> int:
        prompt, options = example
        return len(prompt) * (1 if share else len(options)) + sum(map(len, options))

    batch: list[int] = []
    total = 0
    for index in sorted(range(len(examples)), key=lambda i: -tokens(examples[i])):
        size = tokens(examples[index])
        if batch and total + size > tokens_per_batch:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += size
    if batch:
        yield batch


def _score(
    model: Any, batch: dict[str, torch.Tensor], examples: list[Example], device: torch.device
) -> Iterator[CompletionScores]:
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    pairs, owners = batch.pop("token_pairs"), batch.pop("token_completions")
    token_logps = model(**batch, use_cache=False).log_probs[pairs].double()
    counts = [len(options) for _, options in examples]
    logps = token_logps.new_zeros(sum(counts)).index_add(0, owners, token_logps).cpu().numpy()
    for (_, options), own in zip(examples, np.split(logps, np.cumsum(counts)[:-1]), strict=True):
        yield CompletionScores(own, np.array([len(option) for option in options]))
