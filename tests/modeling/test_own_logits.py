"""Heads that the package does not understand are found out, and scored through the model's own logits."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import (
    COMPLETIONS,
    COPYING,
    PROMPTS,
    RAGGED,
    SHARING,
    VOCAB_SIZE,
    check_scores,
    compare_with_oracle,
    layout_logps,
    make_model,
    make_rows,
    make_tokenizer,
    make_trainer,
    naive_logps,
    prompts_and_completions,
    ragged_examples,
)
from transformers import RobertaConfig, RobertaForCausalLM

from dmpo_trl import score_completions
from dmpo_trl.batching.collator import lay_out
from dmpo_trl.modeling import head_check
from dmpo_trl.modeling.head_check import head_difference
from dmpo_trl.modeling.probe import prepare_for_scoring
from dmpo_trl.modeling.scoring_head import add_scoring_head

DTYPES = [torch.float32, torch.bfloat16]
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


def with_logits(transform, name="llama", **changes):
    """A model that transforms its logits in a way of its own, as a class that the package has not met."""
    model = make_model(name, **changes)
    own = type(model)

    def forward(self, *args, **kwargs):
        output = own.forward(self, *args, **kwargs)
        output.logits = transform(output.logits)
        return output

    model.__class__ = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})
    return model


def with_dense_head():
    """A dense layer and a norm stand between the hidden states and the output embeddings."""
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.2}
    config = RobertaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        is_decoder=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **sizes,
    )
    cls = type(RobertaForCausalLM.__name__, (RobertaForCausalLM,), {"__module__": RobertaForCausalLM.__module__})
    torch.manual_seed(0)
    model = cls._from_config(config).eval()
    for layer in model.roberta.encoder.layer:
        layer.attention.self.key.bias.requires_grad_(False)  # of no effect on a softmax: its gradient is rounding
    return model


def bias(logits):
    return logits + torch.linspace(-1, 1, logits.size(-1)).to(logits)


UNKNOWN = {
    "factor 1.02": lambda: with_logits(lambda logits: 1.02 * logits),
    "factor 1.3": lambda: with_logits(lambda logits: 1.3 * logits),
    # Real models' logits are far from zero (SmolLM2: a mean of 14), where bf16 is coarse and log-probs do not see it
    "factor 1.02 off zero": lambda: with_logits(lambda logits: 1.02 * logits + 14),
    "bias": lambda: with_logits(bias),
    "dense and norm": with_dense_head,
    "mixture of experts": lambda: with_logits(lambda logits: 1.3 * logits, "mixtral"),
    "copies": lambda: with_logits(lambda logits: 1.3 * logits, "bloom"),
}


@pytest.mark.parametrize(("scale", "mode"), [(0.2, "auto"), (0.2, False), (0.02, False)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*SHARING, *COPYING])
def test_right_heads_are_understood(name, dtype, scale, mode, caplog):
    changes = {} if name in ("gpt2", "bloom") else {"initializer_range": scale}
    model = make_model(name, **changes).to(dtype)
    prepare_for_scoring(model, model, mode)
    assert not model.scores_own_logits
    assert "own logits" not in caplog.text
    difference, tolerated = head_difference(model, model)
    assert difference <= tolerated * (0.85 if name == "gemma2" else 0.5)  # a soft cap in bf16 rounds to one side


@pytest.mark.parametrize("mode", ["auto", False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UNKNOWN)
def test_other_heads_are_found_out_with_one_warning(name, dtype, mode, caplog):
    model = UNKNOWN[name]().to(dtype)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            prepare_for_scoring(model, model, mode)
    assert model.scores_own_logits
    assert caplog.text.count("scored through its own logits") == 1
    difference, tolerated = head_difference(model, model)
    assert difference >= 2 * tolerated


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_check_is_as_fine_as_rounding_allows(dtype):
    """The tolerance tried from both sides of its edge."""
    edge = 1e-4 if dtype == torch.float32 else 2e-3
    for factor, understood in ((1 + edge / 4, True), (1 + 2 * edge, False)):
        model = with_logits(lambda logits, factor=factor: (factor * logits.float()).to(logits.dtype)).to(dtype)
        prepare_for_scoring(model, model, False)
        assert model.scores_own_logits is not understood


@pytest.mark.parametrize("offset", [-20, 5, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_heads_far_from_zero_are_understood(dtype, offset):
    model = with_logits(lambda logits: logits + offset).to(dtype)
    prepare_for_scoring(model, model, False)
    assert not model.scores_own_logits


def test_an_adapter_of_the_head_is_not_trusted_before_it_is_trained(caplog):
    """A new one changes nothing, and what was found out then would hold for what training makes of it."""
    model = get_peft_model(with_logits(lambda logits: logits), LoraConfig(target_modules=["lm_head"]))
    base_model = model.get_base_model()
    prepare_for_scoring(model, base_model, False)
    assert base_model.scores_own_logits
    assert "its output embeddings have an adapter" in caplog.text


def test_a_check_that_could_not_be_made_is_made_again(monkeypatch, caplog):
    model = with_logits(lambda logits: logits)
    with monkeypatch.context() as patch:
        patch.setattr(head_check, "evaluation_mode", lambda model: 1 / 0)
        prepare_for_scoring(model, model, False)
    assert model.scores_own_logits  # right, whatever its head is
    assert "could not be compared with what dmpo-trl computes" in caplog.text
    prepare_for_scoring(model, model, False)
    assert not model.scores_own_logits


def test_memory_that_does_not_suffice_is_no_verdict(monkeypatch):
    def fail(model):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = make_model()
    with monkeypatch.context() as patch:
        patch.setattr(head_check, "evaluation_mode", fail)
        with pytest.raises(torch.OutOfMemoryError):
            prepare_for_scoring(model, model, False)
    prepare_for_scoring(model, model, False)
    assert not model.scores_own_logits


def test_few_learned_positions_suffice_for_the_check():
    model = make_model("gpt2", n_positions=16)
    prepare_for_scoring(model, model, False)
    assert not model.scores_own_logits


@pytest.mark.parametrize("loss_type", ["dmpo", "sft"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", ["factor 1.02", "bias", "mixture of experts"])
def test_a_trainer_computes_the_loss_of_the_models_own_logits(tmp_path, name, share, loss_type):
    trainer = make_trainer(
        tmp_path,
        make_rows(RAGGED),
        model=UNKNOWN[name](),
        ref_model=UNKNOWN[name]() if loss_type == "dmpo" else None,  # sft has none
        gradient_checkpointing=False,
        prefix_sharing=share,
        loss_type=loss_type,
    )
    assert trainer.data_collator.prefix_sharing is share
    assert trainer.model.scores_own_logits
    trainer.aux_loss_enabled = False
    if loss_type == "dmpo":
        assert trainer.ref_model.scores_own_logits
        return compare_with_oracle(trainer, UNKNOWN[name]())
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(examples)))
    prompts = [example["prompt_ids"] for example in examples]
    chosen = [[example["chosen_ids"]] for example in examples]
    with torch.no_grad():
        expected = -naive_logps(trainer.model, prompts, chosen).sum() / sum(len(ids) for (ids,) in chosen)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dense and norm", "copies"])
def test_a_trainer_on_copies_of_the_prompt(tmp_path, name):
    trainer = make_trainer(
        tmp_path, make_rows(RAGGED), model=UNKNOWN[name](), ref_model=UNKNOWN[name](), gradient_checkpointing=False
    )
    assert trainer.data_collator.prefix_sharing is False
    compare_with_oracle(trainer, UNKNOWN[name]())


@pytest.mark.parametrize("name", UNKNOWN)
def test_scores_are_the_models_own(name):
    model, tokenizer = UNKNOWN[name](), make_tokenizer()
    check_scores(score_completions(model, tokenizer, PROMPTS, COMPLETIONS), model, tokenizer, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("share", [True, False])
def test_every_output_is_what_the_head_gives(share):
    """A model whose head is understood, scored both ways; the load-balancing loss too."""
    model = make_model("mixtral")
    prepare_for_scoring(model, model, True)
    prompts, completions = prompts_and_completions(ragged_examples(0, [2, 3]))
    batch = lay_out(prompts, completions, prefix_sharing=share, pad_token_id=0, attention_balance=float("inf"))
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("token_pairs", "token_completions")}
    weights = torch.randint(1, 4, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(0))
    options = {"scored_outputs": OUTPUTS, "output_router_logits": True, "num_copies": weights, "use_cache": False}
    found = []
    for own in (False, True):
        model.scores_own_logits = own
        output = model(**inputs, **options)
        model.zero_grad()
        (output.log_probs.sum() + output.aux_loss).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        found.append((dict(output), gradients))
        assert not any(output[name].requires_grad for name in OUTPUTS[1:])
    assert found[0][0].keys() == {*OUTPUTS, "aux_loss"}
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_an_output_that_nobody_asked_for_is_none():
    model = UNKNOWN["bias"]()
    prepare_for_scoring(model, model, False)
    row = torch.zeros(1, dtype=torch.long)
    output = model(torch.tensor([[7, 8]]), scored_rows=row, scored_columns=row, scored_targets=row + 8)
    assert output.keys() == {"log_probs"}


def test_a_lora_of_the_head_is_found_out():
    """The weight of the layer that peft puts in the head's place is that of the base model alone."""
    model, tokenizer = make_model("llama"), make_tokenizer()
    check_scores(score_completions(model, tokenizer, PROMPTS, COMPLETIONS), model, tokenizer, PROMPTS, COMPLETIONS)
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False)).eval()
    check_scores(score_completions(adapted, tokenizer, PROMPTS, COMPLETIONS), adapted, tokenizer, PROMPTS, COMPLETIONS)


def test_a_head_that_cannot_be_tried_is_not_trusted():
    model = make_model("llama")
    add_scoring_head(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[None])  # no matrix, as of a layer of another kind
    model.lm_head._instance_forward = lambda hidden: hidden @ model.lm_head.weight[0].T
    prepare_for_scoring(model, model, "auto")
    assert model.scores_own_logits
    examples = ragged_examples(0, [1, 3])
    prompts, completions = prompts_and_completions(examples)
    batch = lay_out(prompts, completions, prefix_sharing=True, pad_token_id=0)
    found = layout_logps(model, batch, sum(map(len, completions)))
    torch.testing.assert_close(found, naive_logps(model, prompts, completions), atol=2e-5, rtol=1e-5)


def test_a_head_of_zeros_is_understood():
    model = make_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    prepare_for_scoring(model, model, "auto")
    assert not model.scores_own_logits
