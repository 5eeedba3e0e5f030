"""The oracle: log-probs and DMPO's loss from the definition, one sequence at a time, and what is compared with it."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dmpo_trl.batching.completions import model_inputs


def naive_logp(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Log-prob of a completion from the definition: one sequence, one forward, the model's own logits.

    In the model's precision, at least float32, and on its device.
    """
    ids = torch.tensor([list(prompt) + list(completion)], device=next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    # Position t predicts token t + 1; the first token of an empty prompt's completion is predicted by nothing
    scored = range(max(len(prompt), 1), ids.size(1))
    return sum((logps[t - 1, ids[0, t]] for t in scored), logps.new_zeros(()))


def naive_logps(model: Any, prompts: Sequence[Any], completions: Sequence[Any]) -> torch.Tensor:
    """`naive_logp` of every completion, prompt by prompt, (C,)."""
    return torch.stack(
        [naive_logp(model, p, c) for p, options in zip(prompts, completions, strict=True) for c in options]
    )


def layout_logps(model: Any, batch: dict[str, torch.Tensor], count: int) -> torch.Tensor:
    """Log-probs of the `count` completions of a batch that `lay_out` or a collator made, through the scoring head."""
    logps = model(**model_inputs(batch)).log_probs[batch["token_pairs"]]
    return logps.new_zeros(count).index_add(0, batch["token_completions"], logps)


def naive_dmpo_loss(policy, reference_logps, examples, beta):
    """The paper's formula, one sequence at a time."""
    losses = []
    for example, (ref_chosen, ref_rejected) in zip(examples, reference_logps, strict=True):
        chosen = naive_logp(policy, example["prompt_ids"], example["chosen_ids"]) - ref_chosen
        rejected = [
            naive_logp(policy, example["prompt_ids"], ids) - ref
            for ids, ref in zip(example["rejected_ids"], ref_rejected, strict=True)
        ]
        delta = beta * chosen - sum(beta * s for s in rejected) / len(rejected)
        losses.append(-torch.nn.functional.logsigmoid(delta))
    return torch.stack(losses).mean()


@torch.no_grad()
def naive_reference(model, examples):
    return [
        (
            naive_logp(model, e["prompt_ids"], e["chosen_ids"]),
            [naive_logp(model, e["prompt_ids"], ids) for ids in e["rejected_ids"]],
        )
        for e in examples
    ]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_agree(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    assert any(gradient.abs().sum() > 0 for gradient in expected.values())
    for name in expected:
        error = (found[name] - expected[name]).norm() / (expected[name].norm() + 1e-6)
        assert error <= tolerance, f"{name}: relative error {error:.2g}"


def perturb(model, seed=1):
    """Move the policy away from its reference, so that the loss is not log 2."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.03 * torch.randn(parameter.shape, generator=generator).to(parameter.device)


def compare_with_oracle(trainer, reference):
    """Loss and gradients of one batch, against the naive forward with the same weights."""
    perturb(trainer.model)
    trainer.model.train()
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(examples)))
    loss.backward()
    found = gradients(trainer.model)
    trainer.model.zero_grad()
    trainer.model.gradient_checkpointing_disable()
    expected = naive_dmpo_loss(trainer.model, naive_reference(reference, examples), examples, trainer.beta)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss.item() - math.log(2)) > 1e-3
    assert_gradients_agree(found, gradients(trainer.model))
