"""Questions to score, and their scores by the definition."""

import numpy as np
import pytest
import torch

from dmpo_trl.preprocessing.tokenize import tokenize_completions

from .oracle import naive_logp

TITLES = ["Alien", "Aliens", "Alien", "Star Wars", "Toy Story", "The Matrix", "The Mask", "The Rock", "Babe", "Heidi"]
PROMPTS = ["Watched: Alien, Babe. Next:", "Watched: Toy Story. Next:", "Watched: Heidi, The Rock, Babe. Next:"]
COMPLETIONS = [[f" {title}" for title in TITLES], [" The Rock"], [" Alien", " The Matrix", " Star Wars, Toy Story"]]


def expected_scores(model, tokenizer, prompts, completions):
    for prompt, options in zip(prompts, completions, strict=True):
        prompt_ids, options_ids = tokenize_completions(tokenizer, prompt, options)
        with torch.no_grad():
            logps = [naive_logp(model, prompt_ids, ids).item() for ids in options_ids]
        yield np.array(logps), [len(ids) for ids in options_ids]


def check_scores(found, model, tokenizer, prompts, completions):
    expected = list(expected_scores(model, tokenizer, prompts, completions))
    assert len(found) == len(expected)
    for scores, (logps, lengths) in zip(found, expected, strict=True):
        assert scores.logps == pytest.approx(logps, abs=1e-4)
        assert scores.lengths.tolist() == lengths
