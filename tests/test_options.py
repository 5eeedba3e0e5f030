"""Options of DPOTrainer that change numbers, memory or speed, with many negatives; see docs/options.md.

`tests/test_trainer.py` holds what they give with one negative, and gradient checkpointing of both kinds.
"""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from support import (
    RAGGED,
    assert_gradients_agree,
    dpo_and_dmpo,
    gradients,
    loss_gradients_and_metrics,
    make_model,
    make_rows,
    make_trainer,
    naive_dmpo_loss,
    naive_reference,
    perturb,
    save_model,
)
from trl import DPOTrainer

BETA = 0.5  # of `make_config`


def quiet_trainer(tmp_path, counts=RAGGED, **options):
    """A trainer without gradient checkpointing, which adds nothing but time here."""
    return make_trainer(tmp_path, make_rows(counts), **{"gradient_checkpointing": False} | options)


def batch_of(trainer):
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    return trainer._prepare_inputs(trainer.data_collator(examples))


def losses(trainer):
    trainer.train()
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


# Options that change the loss: the formulas, one sequence at a time


def token_scores(model, prompt, completion):
    """Log-prob of each token of a completion, and the log of the sum of the squared probabilities where it stands."""
    ids = torch.tensor([prompt + completion])
    logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(1, ids[0, len(prompt) :, None])[:, 0], (2 * logps).logsumexp(-1)


def f_prime(kind, logratio, alpha=0.5):
    """Derivative of each divergence's generator at the ratio, up to a constant (f-DPO, arXiv 2309.16240, Table 1)."""
    ratio = logratio.exp()
    return {
        "reverse_kl": logratio,
        "forward_kl": 1 - 1 / ratio,
        "js_divergence": torch.log(2 * ratio / (ratio + 1)),
        "alpha_divergence": (ratio ** (alpha - 1) - 1) / (alpha - 1),
    }[kind]


def formula(policy, reference, examples, loss_type, *, f_divergence_type="reverse_kl", ld_alpha=1.0, weighted=False):
    losses = []
    for example in examples:
        completions = [example["chosen_ids"], *example["rejected_ids"]]
        shared = min(map(len, completions))
        scores, weights = [], []
        for completion in completions:
            logps, log_sum_sq = token_scores(policy, example["prompt_ids"], completion)
            with torch.no_grad():
                ref_logps, _ = token_scores(reference, example["prompt_ids"], completion)
            logratio = (logps - ref_logps)[:shared].sum() + ld_alpha * (logps - ref_logps)[shared:].sum()
            scores.append(f_prime(f_divergence_type, logratio))
            weights.append((logps - log_sum_sq).mean().exp().item() if weighted else 1.0)
        gaps = [BETA * (scores[0] - score) for score in scores[1:]]
        pair_weights = [weights[0] * weight for weight in weights[1:]]
        mean_weight = sum(pair_weights) / len(pair_weights)
        if loss_type == "dmpo":
            loss = -F.logsigmoid(sum(gaps) / len(gaps)) * mean_weight
        elif loss_type == "softmax":
            loss = -F.logsigmoid(-torch.stack([-gap for gap in gaps]).logsumexp(0)) * mean_weight
        else:
            loss = sum(-F.logsigmoid(gap) * w for gap, w in zip(gaps, pair_weights, strict=True)) / len(gaps)
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("loss_type", ["dmpo", "softmax", "sigmoid"])
@pytest.mark.parametrize(
    "options",
    [
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence"},
        {"f_divergence_type": "alpha_divergence"},
        {"ld_alpha": 0.3},
        {"use_weighting": True},
        {"f_divergence_type": "js_divergence", "ld_alpha": 0.3, "use_weighting": True},
    ],
    ids=str,
)
def test_many_negatives_are_the_formula(tmp_path, options, loss_type):
    trainer = quiet_trainer(tmp_path, loss_type=loss_type, **options)
    loss, found, _ = loss_gradients_and_metrics(trainer)
    trainer.model.zero_grad()
    options = dict(options)
    weighted = options.pop("use_weighting", False)
    expected = formula(
        trainer.model, make_model(), list(trainer.train_dataset), loss_type, weighted=weighted, **options
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert_gradients_agree(found, gradients(trainer.model))


# The load-balancing loss of a mixture of experts


def load_balancing(model, sequences):
    """Experts * sum_e (share of tokens sent to e) * (mean probability of e), over the tokens of all sequences."""
    config = model.config
    chosen, probabilities = [], []
    for ids in sequences:
        output = model(input_ids=torch.tensor([ids]), output_router_logits=True, use_cache=False)
        for router_logits in output.router_logits:
            probability = router_logits.float().softmax(-1)
            probabilities.append(probability)
            top = probability.topk(config.num_experts_per_tok).indices
            chosen.append(F.one_hot(top, config.num_experts).sum(1).float())
    return config.num_experts * (torch.cat(chosen).mean(0) * torch.cat(probabilities).mean(0)).sum()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("counts", [(1, 1, 1), RAGGED], ids=str)
def test_router_aux_loss_is_over_the_copies_in_either_layout(tmp_path, counts, share):
    """A token of the trie counts as often as there are completions behind it, and padding not at all."""
    trainer = quiet_trainer(
        tmp_path,
        counts,
        model=save_model(tmp_path / "model", "mixtral"),
        router_aux_loss_coef=0.3,
        prefix_sharing=share,
    )
    loss, found, metrics = loss_gradients_and_metrics(trainer)
    trainer.model.zero_grad()
    examples = list(trainer.train_dataset)
    copies = [
        example["prompt_ids"] + completion[:-1]  # the last token predicts nothing, and is not computed
        for example in examples
        for completion in [example["chosen_ids"], *example["rejected_ids"]]
    ]
    aux_loss = load_balancing(trainer.model, copies)
    preference = naive_dmpo_loss(trainer.model, naive_reference(make_model("mixtral"), examples), examples, BETA)
    expected = preference + 0.3 * aux_loss
    expected.backward()
    assert metrics["aux_loss"] == pytest.approx(aux_loss.item(), abs=1e-5)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert_gradients_agree(found, gradients(trainer.model))


def test_router_aux_loss_differs_from_dpos_by_the_last_tokens_only(tmp_path):
    """DPOTrainer also counts each completion's last token. Of two trainers with one negative all else is the same."""
    trainers = dpo_and_dmpo(tmp_path, name="mixtral", our_loss_type="dmpo", router_aux_loss_coef=0.3)
    theirs, ours = map(loss_gradients_and_metrics, trainers)
    preference = [loss - 0.3 * metrics["aux_loss"] for loss, _, metrics in (theirs, ours)]
    assert preference[1] == pytest.approx(preference[0], abs=1e-5)
    examples = list(trainers[0].train_dataset)
    whole = [e["prompt_ids"] + e[name] for e in examples for name in ("chosen_ids", "rejected_ids")]
    assert theirs[2]["aux_loss"] == pytest.approx(load_balancing(trainers[1].model, whole).item(), abs=1e-5)
    cut = [ids[:-1] for ids in whole]
    assert ours[2]["aux_loss"] == pytest.approx(load_balancing(trainers[1].model, cut).item(), abs=1e-5)


# Precision: tolerances are stated in docs/options.md


def in_precision(tmp_path, counts, dtype="float32", *, trainer_class=None, **options):
    """Loss, gradient (one vector) and metrics of a prepared model, as a training step computes them."""
    options |= {"model_init_kwargs": {"dtype": dtype}}
    if trainer_class is DPOTrainer:
        trainer = dpo_and_dmpo(tmp_path, **options)[0]
    else:
        trainer = quiet_trainer(tmp_path, counts, **options)
    perturb(trainer.model)
    model = trainer.accelerator.prepare_model(trainer.model.train())
    loss = trainer.compute_loss(model, batch_of(trainer))
    loss.backward()
    assert loss.dtype == torch.float32
    gradient = torch.cat([g.float().flatten() for g in gradients(trainer.model).values()])
    return loss.item(), gradient, {name: values[-1] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("counts", [(1, 1, 1), RAGGED], ids=str)
@pytest.mark.parametrize(
    ("options", "loss_tolerance", "logp_tolerance", "least_cosine"),
    [
        ({"dtype": "bfloat16"}, 2e-2, 0.1, 0.999),
        ({"bf16": True}, 2e-2, 0.1, 0.999),
        ({"dtype": "float16"}, 1e-3, 1e-2, 0.9999),
    ],
    ids=["bfloat16 weights", "bf16=True", "float16 weights"],
)
def test_half_precision_agrees_with_float32(
    tmp_path, options, loss_tolerance, logp_tolerance, least_cosine, counts, share
):
    expected = in_precision(tmp_path, counts, prefix_sharing=share)
    found = in_precision(tmp_path, counts, prefix_sharing=share, **options)
    assert found[0] != expected[0]
    assert found[0] == pytest.approx(expected[0], abs=loss_tolerance)
    for name in ("logps/chosen", "logps/rejected"):
        assert found[2][name] == pytest.approx(expected[2][name], abs=logp_tolerance)
    assert torch.cosine_similarity(found[1], expected[1], dim=0) > least_cosine


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"bf16": True}, {"dtype": "float16"}, {"fp16": True}], ids=str
)
def test_half_precision_with_one_negative_is_dpos(tmp_path, options):
    """Copies of the prompt round as DPOTrainer's do. (`fp16=True` computes in float32 on a CPU, there and here.)"""
    theirs = in_precision(tmp_path, (1, 1, 1), trainer_class=DPOTrainer, **options)
    ours = in_precision(tmp_path, (1, 1, 1), prefix_sharing=False, **options)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
    assert torch.cosine_similarity(ours[1], theirs[1], dim=0) > 0.9995
    for name in theirs[2].keys() - {"num_tokens"}:
        assert ours[2][name] == pytest.approx(theirs[2][name], abs=1e-3, rel=1e-3), name


def test_log_probs_are_float32_in_half_precision(tmp_path):
    trainer = quiet_trainer(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch_of(trainer))
    assert chosen.dtype == rejected.dtype == torch.float32


# Activation offloading


class UnpackOnce(contextlib.ContextDecorator):
    """What TRL's manager does to saved tensors, without an accelerator: copy them away, hand each back once."""

    def __init__(self):
        self.stored = {}

    def pack(self, tensor):
        key = len(self.stored)
        self.stored[key] = tensor.detach().clone()
        return key

    def unpack(self, key):
        tensor, self.stored[key] = self.stored[key], None
        assert tensor is not None, "a saved tensor was read twice"
        return tensor

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        return self.hooks.__enter__()

    def __exit__(self, *exception):
        return self.hooks.__exit__(*exception)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activation_offloading_may_move_what_is_saved_for_backward(tmp_path, lora, checkpointing):
    def train(context):
        trainer = quiet_trainer(
            tmp_path,
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
            gradient_checkpointing=checkpointing,
            max_steps=3,
        )
        trainer.maybe_activation_offload_context = context
        return losses(trainer), dict(trainer.model.named_parameters())

    offload = UnpackOnce()
    (expected, expected_weights), (found, found_weights) = train(contextlib.nullcontext()), train(offload)
    assert any(tensor is None for tensor in offload.stored.values()), "nothing was offloaded"
    assert found == pytest.approx(expected, abs=1e-6)
    for name, weight in found_weights.items():
        torch.testing.assert_close(weight, expected_weights[name], atol=1e-6, rtol=1e-5, msg=name)


def test_activation_offloading_without_an_accelerator_is_refused(tmp_path):
    with pytest.raises(ValueError, match="training runs on the CPU already"):
        quiet_trainer(tmp_path, activation_offloading=True)


# torch.compile


def rows_of_many_shapes():
    return make_rows((1, 3, 2, 5, 1, 7, 2, 3, 4, 1, 2, 2))


def train_compiled(tmp_path, backend, steps):
    """Losses of a compiled and of a plain run, and how many graphs were compiled up to each step."""
    from torch._dynamo.utils import counters
    from transformers import TrainerCallback

    class CountGraphs(TrainerCallback):
        graphs = []  # noqa: RUF012

        def on_step_end(self, *args, **kwargs):
            self.graphs.append(counters["stats"]["unique_graphs"])

    def run(**options):
        options |= {"max_steps": steps, "per_device_train_batch_size": 2, "gradient_checkpointing": False}
        trainer = make_trainer(tmp_path, rows_of_many_shapes(), model=folder, **options)
        if "torch_compile_backend" in options:
            trainer.add_callback(CountGraphs)
        return losses(trainer)

    folder = save_model(tmp_path / "model")
    plain = run()
    torch._dynamo.reset()
    counters.clear()
    try:
        compiled = run(torch_compile=True, torch_compile_backend=backend)
    finally:
        torch._dynamo.reset()
    return plain, compiled, CountGraphs.graphs


@pytest.mark.slow
def test_torch_compile_trains_alike_and_compiles_no_more_after_the_second_shape(tmp_path):
    plain, compiled, graphs = train_compiled(tmp_path, "eager", steps=12)
    assert compiled == pytest.approx(plain, abs=1e-4)
    assert graphs[1] == graphs[-1] > 0


@pytest.mark.slow
def test_torch_compile_with_inductor_trains_alike(tmp_path):
    plain, compiled, _ = train_compiled(tmp_path, "inductor", steps=3)
    assert compiled == pytest.approx(plain, abs=1e-3)


# A reference that follows the policy (TR-DPO)


def test_sync_ref_model_with_one_negative_is_dpos(tmp_path):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.7, "num_train_epochs": 5}
    theirs, ours = map(losses, dpo_and_dmpo(tmp_path, our_loss_type="dmpo", **options))
    assert len(theirs) == 5
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_sync_ref_model_scores_with_the_reference_of_the_moment(tmp_path):
    trainer = quiet_trainer(
        tmp_path, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=0.6, max_steps=1
    )
    trainer.train()
    mixed = make_model()
    with torch.no_grad():
        for reference, policy in zip(mixed.parameters(), trainer.model.parameters(), strict=True):
            reference.copy_(0.4 * reference + 0.6 * policy)
    for found, expected in zip(trainer.ref_model.parameters(), mixed.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    examples = list(trainer.train_dataset)
    expected = naive_dmpo_loss(trainer.model, naive_reference(mixed, examples), examples, BETA)
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss.item() - math.log(2)) > 1e-3


def test_sync_ref_model_is_refused_where_there_is_no_reference_model(tmp_path):
    with pytest.raises(NotImplementedError, match="sync_ref_model=True"):
        quiet_trainer(tmp_path, sync_ref_model=True, peft_config=LoraConfig(target_modules="all-linear"))
    with pytest.raises(ValueError, match="together with `precompute_ref_log_probs=True`"):
        quiet_trainer(tmp_path, sync_ref_model=True, precompute_ref_log_probs=True)
