"""Tokenisation against TRL's, one text at a time."""

import pytest
from batching.test_vision import _built
from hypothesis import assume, given
from hypothesis import strategies as st
from support import make_tokenizer
from tokenizers.processors import TemplateProcessing
from trl.data_utils import _tokenize

from dmpo_trl._common_prefix import common_prefix_length
from dmpo_trl.preprocessing.tokenize import tokenize_completions

TEXTS = st.lists(st.text("Ali en,Bx<>/s|\u00e9 ", max_size=9), min_size=1, max_size=4)
TOKENIZER = make_tokenizer()


def as_trl_tokenizes(processing_class, prompt, completions, eos_token):
    """Each text by itself, with TRL's function."""
    options = {}
    if isinstance(prompt, str):
        completions = [text + ("" if text.endswith(eos_token) else eos_token) for text in completions]
    else:
        options = {"add_generation_prompt": True}
    prompt_ids = list(_tokenize(processing_class, prompt, **options)["input_ids"])
    wholes = [list(_tokenize(processing_class, prompt + completion)["input_ids"]) for completion in completions]
    length = min(common_prefix_length(prompt_ids, whole) for whole in wholes)
    return prompt_ids[:length], [whole[length:] for whole in wholes]


@given(st.text("Watched: Ali", max_size=9), TEXTS)
def test_texts_are_tokenised_as_one_by_one(prompt, completions):
    found = tokenize_completions(TOKENIZER, prompt, completions)
    assert found == as_trl_tokenizes(TOKENIZER, prompt, completions, "</s>")


@given(st.text("Watched: Ali", max_size=9), TEXTS)
def test_messages_are_tokenised_as_one_by_one(prompt, completions):
    # What looks like a special token stays text in messages: see test_special_tokens.py
    assume(not any(token in text for text in (prompt, *completions) for token in ("<s>", "</s>")))
    messages = [{"role": "user", "content": prompt}]
    answers = [[{"role": "assistant", "content": text}] for text in completions]
    found = tokenize_completions(TOKENIZER, messages, answers)
    assert found == as_trl_tokenizes(TOKENIZER, messages, answers, None)


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_processors_tokenise_rows_without_images_as_one_by_one(name, conversational):
    """As TRL does for a vision-language model that is trained on texts."""
    _, _, processor, _ = _built(name)
    prompt, completions = "Watched: Alien. Next:", [" Aliens", " Babe", " Heidi and the rest"]
    if conversational:
        prompt = [{"role": "user", "content": prompt}]
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    found = tokenize_completions(processor, prompt, completions)
    assert found == as_trl_tokenizes(processor, prompt, completions, "</s>")


def test_a_row_is_one_call_of_the_tokenizer(monkeypatch):
    calls = []
    plain = type(TOKENIZER)._encode_plus
    monkeypatch.setattr(
        type(TOKENIZER), "_encode_plus", lambda self, *args, **kwargs: calls.append(1) or plain(self, *args, **kwargs)
    )
    tokenize_completions(TOKENIZER, "Next:", [" Alien"] * 15)
    assert len(calls) == 1
    answers = [[{"role": "assistant", "content": "Alien"}]] * 15
    tokenize_completions(TOKENIZER, [{"role": "user", "content": "Next?"}], answers)
    assert len(calls) == 3  # the prompt, which ends another way, and the rest


@pytest.mark.parametrize("text", [" Alien", " Alien</s>"])
def test_a_tokenizer_that_appends_its_own_end_appends_one(text):
    """Else every completion has two, and each length, and so each mean score, counts one token too many."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    )
    prompt, (completion,) = tokenize_completions(tokenizer, "Next:", [text])
    assert prompt == tokenizer("<s>Next:", add_special_tokens=False)["input_ids"]
    assert completion == tokenizer(" Alien</s>", add_special_tokens=False)["input_ids"]


def test_an_end_that_a_text_itself_holds_is_kept():
    """Only what the tokenizer appends is taken off: a prompt may end with the token too."""
    prompt, (completion,) = tokenize_completions(TOKENIZER, "Next:</s>", [""])
    assert prompt == TOKENIZER("Next:</s>")["input_ids"]
    assert completion == [TOKENIZER.eos_token_id]
