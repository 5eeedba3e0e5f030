import logging

import polars as pl
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from support import (
    COPYING,
    SHARING,
    layout_logps,
    make_model,
    make_tokenizer,
    naive_logps,
    prompts_and_completions,
    ragged_examples,
)

from dmpo_trl.batching.collator import lay_out
from dmpo_trl.data import MOVIES
from dmpo_trl.modeling import probe as probe_module
from dmpo_trl.modeling.probe import NonFiniteLogitsError, prepare_for_scoring, probe, require_finite_logits
from dmpo_trl.recommend import Recommender


def logps(model, examples, share):
    prompts, completions = prompts_and_completions(examples)
    batch = lay_out(prompts, completions, prefix_sharing=share, pad_token_id=0, attention_balance=float("inf"))
    found = layout_logps(model, batch, sum(map(len, completions)))
    return found, naive_logps(model, prompts, completions)


@pytest.mark.parametrize("name", SHARING)
def test_sharing_is_found_right_and_is(name):
    model = make_model(name)
    assert prepare_for_scoring(model, model, "auto") is True
    found, expected = logps(model, ragged_examples(0, [1, 4, 2]), share=True)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", COPYING)
def test_copies_where_sharing_would_be_wrong(name, caplog):
    model = make_model(name)
    attention = model.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        assert prepare_for_scoring(model, model, "auto") is False
    assert f"Prefix sharing is off: {type(model).__name__}" in caplog.text
    assert model.config._attn_implementation == attention
    found, expected = logps(model, ragged_examples(0, [1, 4, 2]), share=False)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bloom", "lfm2_hybrid"])
def test_true_is_sharing_or_an_error(name):
    model = make_model(name)
    with pytest.raises(ValueError, match=f"`prefix_sharing=True`, but {type(model).__name__} cannot"):
        prepare_for_scoring(model, model, True)


@pytest.mark.parametrize("name", ["lfm2_hybrid", "mamba"])
def test_numbers_alone_find_what_the_layer_types_tell(name, monkeypatch):
    monkeypatch.setattr("dmpo_trl.modeling.probe._ATTENTION_LAYERS", {"full_attention", "conv", "linear_attention"})
    model = make_model(name)
    assert prepare_for_scoring(model, model, "auto") is False


@pytest.mark.parametrize("scale", [0.02, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gap_between_right_and_wrong_is_wide(dtype, scale, monkeypatch):
    """Even weights so small that the context hardly matters leave no doubt."""
    right = make_model("llama", initializer_range=scale).to(dtype)
    assert prepare_for_scoring(right, right, "auto") is True
    difference, tolerance = probe(right, right)
    assert difference <= tolerance / (10 if dtype == torch.float32 else 1)

    # Wrong: tokens see the other branches, as with a model that ignores the mask
    wrong = make_model("llama", initializer_range=scale).to(dtype)
    monkeypatch.setattr("dmpo_trl.modeling.attention._by_depth", lambda mask_function, layout, device: mask_function)
    assert prepare_for_scoring(wrong, wrong, "auto") is False


def test_windows_are_tested_however_long_they_are(monkeypatch):
    """A window measured in places of the row instead of depths is found, though the probe is shorter than it."""

    def by_place(mask_function, layout, device):
        def sees(b, h, q, k):
            return mask_function(b, h, q, k) & (q < layout.subtree_end[b, k])

        return sees

    monkeypatch.setattr("dmpo_trl.modeling.attention._by_depth", by_place)
    model = make_model("mistral_window", sliding_window=1000)
    assert prepare_for_scoring(model, model, "auto") is False
    assert model.config.sliding_window == 1000


@pytest.fixture
def probes(monkeypatch):
    """How often a probe of the trie, and a check of the head, was made."""
    counts = {"_trie_obstacle": 0, "head_obstacle": 0}

    def counted(name, ask):
        def count(*args):
            counts[name] += 1
            return ask(*args)

        return count

    for name in counts:
        monkeypatch.setattr(probe_module, name, counted(name, getattr(probe_module, name)))
    return counts


@pytest.mark.parametrize(
    ("name", "shares"), [("llama", True), ("bloom", False), ("lfm2_hybrid", False), ("falcon_alibi", False)]
)
def test_an_answer_is_remembered_yes_or_no(name, shares, probes, caplog):
    model = make_model(name)
    attention = model.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert prepare_for_scoring(model, model, "auto") is shares
            model.set_attn_implementation(attention)  # as a `RankingCallback` does
    assert probes == {"_trie_obstacle": 1, "head_obstacle": 1}
    assert caplog.text.count("Prefix sharing is off") == (0 if shares else 1)
    # What is remembered does not turn an error into copies
    if not shares:
        with pytest.raises(ValueError, match=r"cannot share prefixes: its "):
            prepare_for_scoring(model, model, True)


def test_what_was_refused_warns_once_when_it_is_first_computed_on_copies(probes, caplog):
    model = make_model("bloom")
    with pytest.raises(ValueError, match="cannot share prefixes"):
        prepare_for_scoring(model, model, True)
    assert "Prefix sharing is off" not in caplog.text
    for _ in range(2):
        assert prepare_for_scoring(model, model, "auto") is False
    assert caplog.text.count("Prefix sharing is off") == 1
    assert probes["_trie_obstacle"] == 1


def test_another_attention_is_another_question(probes):
    model = make_model("llama")
    assert prepare_for_scoring(model, model, "auto") is True
    model.set_attn_implementation("eager")
    assert prepare_for_scoring(model, model, "auto") is True
    assert model.config._attn_implementation == "trie_eager"
    assert probes["_trie_obstacle"] == 2


def test_a_recommender_asks_and_warns_once(probes, caplog):
    items = pl.DataFrame({"item": ["1", "2"], "title": ["Alien", "Babe"]})
    recommender = Recommender(make_model("bloom"), make_tokenizer(), items, MOVIES.plain())
    for _ in range(3):
        recommender.rank(["1"], ["1", "2"])
    assert probes == {"_trie_obstacle": 1, "head_obstacle": 1}
    assert caplog.text.count("Prefix sharing is off") == 1


def test_lora_shares_and_prompt_learning_copies():
    model = get_peft_model(make_model("llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert prepare_for_scoring(model, model.get_base_model(), "auto") is True
    found, expected = logps(model.eval(), ragged_examples(0, [1, 3]), share=True)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)

    model = get_peft_model(make_model("llama"), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert prepare_for_scoring(model, model.get_base_model(), "auto") is False
    model.eval()
    found, _ = logps(model, ragged_examples(0, [1, 3]), share=False)
    examples = ragged_examples(0, [1, 3])
    example = examples[0]
    ids = torch.tensor([example["prompt_ids"] + example["chosen_ids"]])
    own = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 3:].log_softmax(-1)
    expected = sum(own[t - 1, ids[0, t]] for t in range(len(example["prompt_ids"]), ids.size(1)))
    torch.testing.assert_close(found[0], expected, atol=2e-5, rtol=1e-5)


def test_what_holds_for_a_model_does_not_for_a_prompt_learning_adapter_around_it():
    model = make_model("llama")
    assert prepare_for_scoring(model, model, "auto") is True
    adapted = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert prepare_for_scoring(adapted, model, "auto") is False
    assert prepare_for_scoring(model, model, "auto") is True


def test_the_model_stays_what_it_was_outside_of_the_layout(tmp_path):
    """Plain calls, generation and saved files do not know about the trie."""
    model, twin = make_model("gemma3"), make_model("gemma3")
    assert prepare_for_scoring(model, model, "auto") is True
    ids = torch.randint(6, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, twin(ids, attention_mask=mask).logits)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask}
    assert torch.equal(model.generate(ids, **options), twin.generate(ids, **options))
    model.save_pretrained(tmp_path)
    assert "trie" not in (tmp_path / "config.json").read_text()


def nan_model():
    model = make_model("llama")
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    return model


@pytest.mark.parametrize("mode", ["auto", True, False])
def test_logits_that_are_not_finite_are_refused(mode):
    with pytest.raises(NonFiniteLogitsError, match="not finite"):
        require_finite_logits(*[nan_model()] * 2)
    with pytest.raises(NonFiniteLogitsError, match="not finite"):
        prepare_for_scoring(*[nan_model()] * 2, mode)
