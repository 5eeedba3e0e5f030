import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support import make_model, make_tokenizer
from support.users import TITLES, make_users

from dmpo_trl.evaluation.generation import _generate, generate_items
from dmpo_trl.modeling.probe import prepare_for_scoring
from dmpo_trl.preprocessing.tokenize import tokenize_completions


def greedy(model, tokenizer, row, steps) -> str:
    """Oracle: one prompt, the likeliest token, one forward per token."""
    ids, _ = tokenize_completions(tokenizer, row["prompt"], row["candidates"])
    said = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([ids + said])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        said.append(token)
    return tokenizer.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_outputs_are_the_greedy_ones(name):
    model, tokenizer, users = make_model(name), make_tokenizer(), make_users(7)
    prompt = users[0]["prompt"]
    longest = max(len(tokenizer(prompt + title)["input_ids"]) for title in TITLES) - len(
        tokenizer(prompt)["input_ids"]
    )
    expected = [greedy(model, tokenizer, row, longest + 1) for row in users]  # one more: the end
    assert len(set(expected)) > 1
    for batch_size in (1, 3):
        assert generate_items(model, tokenizer, users, TITLES, name="x", batch_size=batch_size).outputs == expected
    prepare_for_scoring(model, model, "auto")  # ranking before makes no difference
    assert generate_items(model, tokenizer, users, TITLES, name="x").outputs == expected


def taught(users: Dataset, says: list[str]):
    """A model that says what it was taught after each prompt."""
    model, tokenizer = make_model(), make_tokenizer()
    teach(model, tokenizer, users, says)
    return model, tokenizer


def teach(model, tokenizer, users, says):
    pairs = [tokenize_completions(tokenizer, row["prompt"], [text]) for row, text in zip(users, says, strict=True)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = torch.zeros(())
        for prompt, (completion,) in pairs:
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(completion))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_what_counts_as_an_item():
    users = make_users(4)
    # The target; another candidate; a title, but none of the user's candidates; a title and more
    own = [row["candidates"] for row in users]
    elsewhere = next(title for title in TITLES if f" {title}" not in own[2])
    says = [own[0][users[0]["positive"]], own[1][0], f" {elsewhere}", f"{own[3][users[3]['positive']]} and more"]
    model, tokenizer = taught(users, says)
    result = generate_items(model.train(), tokenizer, users, [*TITLES, "Something longer than that"], name="taught")
    assert result.outputs == [text.strip() for text in says]
    assert result.in_catalogue.tolist() == [True, True, True, False]
    assert result.in_candidates.tolist() == [True, True, False, False]
    assert result.hits.tolist() == [True, False, False, False]
    assert result.metrics() == {"valid": 0.75, "valid_candidate": 0.5, "hr@1": 0.25}
    interval = result.intervals()["valid"]
    assert (interval.mean, interval.high) == (0.75, 1)
    assert interval.low < 0.75
    assert (result.name, result.users) == ("taught", ["u0", "u1", "u2", "u3"])
    assert model.training


def test_messages_and_adapters():
    model = get_peft_model(make_model(), LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    tokenizer = make_tokenizer()
    plain = make_users(3)
    users = plain.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "candidates": [[{"role": "assistant", "content": text.strip()}] for text in row["candidates"]],
        },
        remove_columns=["prompt", "candidates"],
    )
    result = generate_items(model, tokenizer, users, TITLES, name="adapter", batch_size=2)
    template = {"add_generation_prompt": True, "tokenize": False}
    texts = [{"prompt": tokenizer.apply_chat_template(row["prompt"], **template), "candidates": [""]} for row in users]
    longest = max(len(tokenizer(title)["input_ids"]) for title in TITLES) + 1
    assert result.outputs == [greedy(model, tokenizer, row, longest) for row in texts]
    assert not np.any(result.hits)


def test_there_must_be_users_and_titles():
    for users, titles in [(make_users(2).select([]), TITLES), (make_users(2), [])]:
        with pytest.raises(ValueError, match=f"{len(users)} users and {len(titles)} titles"):
            generate_items(None, None, users, titles, name="x")


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_prompt(batch_size):
    with pytest.raises(ValueError, match=f"`batch_size` must be at least 1, got {batch_size}"):
        generate_items(None, None, make_users(2), TITLES, name="x", batch_size=batch_size)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 10.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": "those of the answers"},
        {"min_new_tokens": 9},
    ],
    ids=str,
)
def test_the_models_own_generation_config_does_not_decide(options):
    """Qwen2.5-Instruct's repetition penalty forbids what a prompt full of titles asks for: a sequel."""
    users = make_users(4).map(lambda row: {"prompt": f"Watched:{row['candidates'][row['positive']]}. Again:"})
    answers = [row["candidates"][row["positive"]] for row in users]
    model, tokenizer = taught(users, answers)
    if "suppress_tokens" in options:
        options = {"suppress_tokens": sorted({token for answer in answers for token in tokenizer(answer).input_ids})}
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    for row, answer in zip(users, answers, strict=True):  # by its own config the model says something else
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        said = model.generate(**prompt, do_sample=False, max_new_tokens=9)[0, prompt.input_ids.shape[1] :]
        assert tokenizer.decode(said, skip_special_tokens=True) != answer
    result = generate_items(model, tokenizer, users, TITLES, name="taught")
    assert result.metrics() == {"valid": 1.0, "valid_candidate": 1.0, "hr@1": 1.0}
    assert getattr(model.generation_config, next(iter(options))) == next(iter(options.values()))


def test_an_answer_ends_where_the_chat_template_ends_a_turn():
    """A base model with a ChatML template: its turns end in another token than its end of sequence."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    users = make_users(3).map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "candidates": [[{"role": "assistant", "content": text.strip()}] for text in row["candidates"]],
        },
        remove_columns=["prompt", "candidates"],
    )
    # It has learnt that chats go on after a turn
    says = [row["candidates"][row["positive"]] + [{"role": "user", "content": "And?"}] for row in users]
    model = make_model()
    model.resize_token_embeddings(len(tokenizer))
    teach(model, tokenizer, users, says)
    result = generate_items(model, tokenizer, users, [*TITLES, "A title that is longer than all others"], name="x")
    assert result.metrics() == {"valid": 1.0, "valid_candidate": 1.0, "hr@1": 1.0}


def test_a_process_without_users_generates_nothing():
    model, tokenizer, users = make_model(), make_tokenizer(), make_users(2).select([])
    assert _generate(model, tokenizer, None, users, longest=4, batch_size=2, bar=None) == []
