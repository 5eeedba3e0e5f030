"""Bad input is trained on correctly or refused before the first step; bad_input.md has every case.

"Correctly" means the loss of the paper's formula over whole sequences, one at a time, and finite weights after a step.
"""

import copy
import logging
import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support import VOCAB_SIZE, make_model, make_tokenizer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.preprocessing import validate
from dmpo_trl.preprocessing.format import RowError
from dmpo_trl.preprocessing.validate import check_rows
from dmpo_trl.training.checks import check_limits, check_step

BETA = 0.5
PROMPT = "Watched: Alien, Babe. Next:"


def row(**changes):
    return {"prompt": PROMPT, "chosen": " Alien", "rejected": [" Babe", " Heidi"]} | changes


def message(content, role="assistant", **fields):
    return [{"role": role, "content": content, **fields}]


def chat(**changes):
    return {
        "prompt": message("Next?", "user"),
        "chosen": message("Alien"),
        "rejected": [message("Babe"), message("Heidi")],
    } | changes


def tokens(**changes):
    return {"prompt_ids": [10, 11, 12], "chosen_ids": [20, 2], "rejected_ids": [[21, 2], [22, 23, 2]]} | changes


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


class Case(NamedTuple):
    rows: list[dict[str, Any]]
    options: Mapping[str, Any] = MappingProxyType({})
    tokenizer: Callable[[], Any] = make_tokenizer
    make: Callable[[list[dict[str, Any]]], Any] = Dataset.from_list
    kept: list[int] | None = None  # rows that are trained on; all by default
    model: str = "llama"


def without(*names):
    def make():
        tokenizer = make_tokenizer()
        for name in names:
            setattr(tokenizer, name, None)
        return tokenizer

    return make


def with_template(template):
    def make():
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        return tokenizer

    return make


def with_more_tokens():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<title {number}>" for number in range(VOCAB_SIZE)])
    return tokenizer


RENDER = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
GENERATION = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
COUNTS_MESSAGES = "[{{ messages | length }}]" + RENDER + GENERATION
REWRITES_ALL = "{{ 'A' if add_generation_prompt else 'B' }}" + RENDER + GENERATION
DROPS_THINKING = RENDER + "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}"
WANTS_A_USER = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('No user query') }}{% endif %}" + RENDER
KNOWN_ROLES = "{% for m in messages if m['role'] in ('user', 'assistant') %}{{ m['content'] }}</s>{% endfor %}"

# The second row is the bad one, unless the first stands for the type of the whole column
REFUSED = {
    "empty list": Case([row(), row(rejected=[])]),
    "null list": Case([row(), row(rejected=None)]),
    "null in the list": Case([row(), row(rejected=[" Babe", None])]),
    "null chosen": Case([row(), row(chosen=None)]),
    "null prompt": Case([row(), row(prompt=None)]),
    "number as chosen": Case([row(chosen=3), row(chosen=4)]),
    "numbers in the list": Case([row(rejected=[3, 4])]),
    "column of dicts": Case([row(rejected={"title": "Babe"})]),
    "empty list of chosen": Case([row(chosen=[" Alien"]), row(chosen=[])]),
    "null among chosen": Case([row(chosen=[" Alien"]), row(chosen=[" Alien", None])]),
    "chosen twice": Case([row(chosen=[" Alien", " Ox"]), row(chosen=[" Ox", " Ox"])]),
    "one of the chosen among rejected": Case([row(chosen=[" Alien", " Ox"]), row(chosen=[" Ox", " Babe"])]),
    "same tokens among chosen": Case([row(chosen=[" Alien"]), row(chosen=[" Alien", " Alien</s>"])]),
    "one level too few": Case([row(chosen=[" Ox"], chosen_levels=[1]), row(chosen=[" Ox", " Al"], chosen_levels=[1])]),
    "list of dicts that are no messages": Case([row(rejected=[{"title": "Babe"}])]),
    "no chosen column": Case([{"prompt": PROMPT, "rejected": [" Babe"]}]),
    "no rejected column": Case([{"prompt": PROMPT, "chosen": " Alien"}]),
    "all numbered columns null": Case([row(rejected1=" Ox"), row(rejected=None, rejected1=None)]),
    "chosen among rejected": Case([row(), row(rejected=[" Babe", " Alien"])]),
    "chosen in a numbered column": Case([row(rejected2=" Ox"), row(rejected2=" Alien")]),
    "chosen among rejected messages": Case([chat(), chat(rejected=[message("Babe"), message("Alien")])]),
    "same tokens as chosen": Case([row(), row(rejected=[" Alien</s>"])]),
    "empty prompt": Case([row(), row(prompt="")]),
    "no prompt, nothing in common": Case([{"chosen": "Alien", "rejected": ["Babe"]}]),
    "prompt merges into one token with the title": Case([row(), row(prompt="A", chosen="lien", rejected=["liens"])]),
    "empty chosen, no end-of-sequence token": Case([row(), row(chosen="")], tokenizer=without("eos_token")),
    "empty rejected, no end-of-sequence token": Case([row(), row(rejected=[""])], tokenizer=without("eos_token")),
    "all prompts longer than max_length": Case([row(), row()], {"max_length": 4}),
    "all prompts of a stream longer than max_length": Case([row(), row()], {"max_length": 4}, make=stream),
    "completion longer than max_length": Case([row()], {"max_length": 2, "truncation_mode": "keep_completion"}),
    "text and messages in one row": Case([row(rejected=[message("Babe")])]),
    "message without content": Case([chat(), chat(rejected=[message("Babe"), message(None)])]),
    "role that the template leaves out": Case(
        [chat(), chat(chosen=message("Alien", "critic"))], tokenizer=with_template(KNOWN_ROLES)
    ),
    "system message that the template refuses": Case(
        [chat(), chat(prompt=message("Be brief", "system"))], tokenizer=with_template(WANTS_A_USER)
    ),
    "no chat template": Case([chat()], tokenizer=with_template(None)),
    "template that rewrites the whole prompt": Case([chat()], tokenizer=with_template(REWRITES_ALL)),
    "no pad and no end-of-sequence token": Case([row()], tokenizer=without("pad_token", "eos_token")),
    "token that the model does not know": Case(
        [row(), row(chosen=f" <title {VOCAB_SIZE - 1}>")], tokenizer=with_more_tokens
    ),
    "more tokens than learned positions": Case([row(), row(prompt=PROMPT * 120)], {"max_length": None}, model="gpt2"),
    "empty dataset": Case([]),
    "empty stream": Case([], make=stream),
    "first row of a stream": Case([row(rejected=[])], make=stream),
    "token ids: empty list": Case([tokens(), tokens(rejected_ids=[])]),
    "token ids: empty completion": Case([tokens(), tokens(rejected_ids=[[21], []])]),
    "token ids: empty prompt": Case([tokens(), tokens(prompt_ids=[])]),
    "token ids: same among chosen": Case([tokens(chosen_ids=[[20]]), tokens(chosen_ids=[[20], [20]])]),
    "token ids: empty one among chosen": Case([tokens(chosen_ids=[[20]]), tokens(chosen_ids=[[20], []])]),
    "token ids: chosen among rejected": Case([tokens(), tokens(rejected_ids=[[20, 2]])]),
    "token ids: negative": Case([tokens(), tokens(chosen_ids=[20, -100])]),
    "token ids: null": Case([tokens(), tokens(chosen_ids=[20, None])]),
    "token ids: unknown to the model": Case([tokens(), tokens(rejected_ids=[[VOCAB_SIZE, 2]])]),
}

TRAINED = {
    "N differs from row to row": Case([row(rejected=[f" {i}" for i in range(n)]) for n in (1, 7, 3)]),
    "one completion instead of a list": Case([row(rejected=" Babe")] * 2),
    "rejected twice": Case([row(rejected=[" Babe", " Babe", " Heidi"])]),
    "equal but for spaces": Case([row(rejected=[" Alien ", "  Alien", " Alien\n"])]),
    "rejected begins chosen": Case([row(chosen=" Alien II", rejected=[" Alien", " Al"])]),
    "rejected begins chosen, no end-of-sequence token": Case(
        [row(chosen=" Alien II", rejected=[" Alien", " Alien II, III"])], tokenizer=without("eos_token")
    ),
    "empty strings": Case([row(chosen=""), row(rejected=["", " Babe"])]),
    "only spaces": Case([row(chosen="  ", rejected=["\t", "\n"]), row(prompt=" ", rejected=["\u3000", "\u200b"])]),
    "emoji and right-to-left text": Case(
        [row(prompt="שלום 👩‍👩‍👧 →", chosen="العربية", rejected=["🎬🍿", "\u202eneila", "e\u0301", "\x00"])]
    ),
    "prompt ends within a token": Case([row(prompt="Watched: Ali", chosen="en", rejected=["ens", "ce"])]),
    "no prompt column": Case([{"chosen": PROMPT + " Alien", "rejected": [PROMPT + " Babe", PROMPT + " Aliens"]}]),
    "one prompt longer than max_length": Case([row(), row(prompt=PROMPT * 9)], {"max_length": 64}, kept=[0]),
    "1,000 rejected in one row": Case([row(prompt="Next:", rejected=[f" {i}" for i in range(1000)]), row()]),
    "no pad token": Case([row(), row(prompt="Next:")], tokenizer=without("pad_token")),
    "no end-of-sequence token": Case([row(), row(prompt="Next:")], tokenizer=without("eos_token")),
    "messages with empty content": Case([chat(chosen=message("")), chat(prompt=message("", "user"))]),
    "system message only": Case([chat(prompt=message("Be brief", "system"))]),
    "unknown role": Case([chat(chosen=message("Alien", "critic"))]),
    "tool calls": Case(
        [chat(prompt=message(None, tool_calls=[{"type": "function", "function": {"name": "look_up"}}]))]
    ),
    "template that counts messages": Case([chat()], tokenizer=with_template(COUNTS_MESSAGES)),
    "template that drops thinking": Case([chat()], tokenizer=with_template(DROPS_THINKING)),
    "stream whose tokenizer has a token that the model lacks and no row": Case(
        [row(), row(rejected=[" Ox"])], tokenizer=with_more_tokens, make=stream
    ),
    "stream without max_length, shorter than learned positions": Case(
        [row(), row(rejected=[" Ox"])], {"max_length": None}, make=stream, model="gpt2"
    ),
    "rows in a stream": Case([row(), row(rejected=[" Ox"])], make=stream),
    "numpy format": Case([row(), row()], make=lambda rows: Dataset.from_list(rows).with_format("numpy")),
    "token ids": Case([tokens(), tokens(rejected_ids=[[21]])]),
    "token ids, one rejected without a list": Case([tokens(rejected_ids=[21, 22])] * 2),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {}
    for name in ("llama", "gpt2"):
        folder = tmp_path_factory.mktemp(name)
        make_model(name, **({"num_hidden_layers": 1} if name == "llama" else {})).save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture
def build(folders, tmp_path):
    return lambda *args, **options: make_trainer(folders, tmp_path, *args, **options)


def make_trainer(folders, tmp_path, dataset, *, tokenizer=None, model="llama", eval_dataset=None, **options):
    defaults = {
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "max_steps": 1,
        "beta": BETA,
    }
    return DMPOTrainer(
        folders.get(model, model),
        args=DMPOConfig(str(tmp_path / "out"), **defaults | options),
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer or make_tokenizer(),
    )


def whole_sequences(tokenizer, example):
    """Token ids of prompt and completion together, the chosen one first."""
    if "prompt_ids" in example:
        rejected = example["rejected_ids"]
        rejected = [rejected] if isinstance(rejected[0], int) else rejected
        return [example["prompt_ids"] + ids for ids in (example["chosen_ids"], *rejected)]
    prompt, rejected = example.get("prompt", ""), example["rejected"]
    completions = [example["chosen"], *([rejected] if isinstance(rejected, str) else rejected)]
    if isinstance(prompt, list):
        return [
            tokenizer.apply_chat_template(prompt + text, tokenize=True, return_dict=True)["input_ids"]
            for text in completions
        ]
    end = tokenizer.eos_token or ""
    return [tokenizer(prompt + text.removesuffix(end) + end)["input_ids"] for text in completions]


def naive_loss(policy, reference, sequences):
    """The paper's formula. Tokens before the first difference cancel, so that it does not matter where prompts end."""

    def logp(model, ids):
        logps = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        return logps[:-1].gather(1, torch.tensor(ids)[1:, None]).sum()

    def log_ratio(ids):
        return logp(policy, ids) - logp(reference, ids)

    losses = []
    for chosen, *rejected in sequences:
        delta = BETA * (log_ratio(chosen) - sum(map(log_ratio, rejected)) / len(rejected))
        losses.append(-torch.nn.functional.logsigmoid(delta))
    return float(sum(losses) / len(losses))


@torch.no_grad()
def assert_loss_is_the_formulas(trainer, sequences):
    generator = torch.Generator().manual_seed(1)
    reference = copy.deepcopy(trainer.model).double()  # sums over 10,000 tokens need the digits
    for parameter in trainer.model.parameters():  # away from the reference, where the loss is log 2
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    policy = copy.deepcopy(trainer.model).double()
    for model in (policy, reference):  # the scoring head's forward is bound to the model that was copied
        model.forward = type(model).forward.__get__(model)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
    assert loss.item() == pytest.approx(naive_loss(policy, reference, sequences), abs=2e-5)
    assert abs(loss.item() - math.log(2)) > 1e-3


def assert_finite(trainer):
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def documented():
    """Return the tables of bad_input.md: outcome and message (or remark) by test."""
    lines = Path(__file__).with_name("bad_input.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {test.strip("`"): (outcome, text) for _, outcome, text, test in cells if test.startswith("`test")}


def assert_documented(request, error):
    text = re.sub(r"'/\S+'", "…", str(error).strip())
    # datasets 4 sorts the keys of a message, datasets 5 keeps their order
    text = re.sub(r"\{('content': [^}]+), ('role': '\w+')\}", r"{\2, \1}", text)
    assert documented()[request.node.name] == ("refused", text)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(build, request, name):
    case = REFUSED[name]
    options = {"tokenizer": case.tokenizer(), "model": case.model} | case.options
    with pytest.raises(ValueError, match=r"dataset|pad_token") as caught:
        build(case.make(case.rows), **options)
    assert_documented(request, caught.value)


@pytest.mark.parametrize("name", TRAINED)
def test_trained(build, name):
    case = TRAINED[name]
    tokenizer = case.tokenizer()
    trainer = build(case.make(case.rows), tokenizer=tokenizer, **case.options)
    kept = case.rows if case.kept is None else [case.rows[index] for index in case.kept]
    assert_loss_is_the_formulas(trainer, [whole_sequences(tokenizer, example) for example in kept])
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    assert math.isfinite(trainer.train().training_loss)
    assert_finite(trainer)
    assert any((a != b).any() for a, b in zip(before, trainer.model.parameters(), strict=True))


# Anything at all

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", " ", "Alien", " Alien", " Alien</s>", "\u202e", "👩\u200d👩\u200d👧", "</s>", "<s>"]
)
VALUES = TEXTS | st.none() | st.integers() | st.lists(TEXTS | st.none() | st.integers(), max_size=3)


@settings(max_examples=25)
@given(st.lists(st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS, "rejected": st.lists(TEXTS)}), min_size=1))
def test_any_texts(folders, tmp_path_factory, rows):
    """Rows of the right types: refused by number for what the contract names, else tokenised whole."""
    try:
        trainer = make_trainer(folders, tmp_path_factory.mktemp("out"), Dataset.from_list(rows))
    except RowError as error:
        bad = rows[int(re.match(r"Row (\d+) of the train dataset, column `(prompt|chosen|rejected)`", str(error))[1])]
        ends = {text.removesuffix("</s>") for text in bad["rejected"]}
        tokenizer = make_tokenizer()
        prompt = tokenizer(bad["prompt"])["input_ids"]
        assert (
            not bad["rejected"]
            or bad["chosen"].removesuffix("</s>") in ends
            or not prompt
            or any(ids[0] != prompt[0] for ids in whole_sequences(tokenizer, bad))
        )
        return
    tokenizer = make_tokenizer()
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
    for example, found in zip(rows, trainer.train_dataset, strict=True):
        sequences = [found["prompt_ids"] + ids for ids in (found["chosen_ids"], *found["rejected_ids"])]
        assert sequences == whole_sequences(tokenizer, example)


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "rejected2"]), VALUES), max_size=3))
def test_any_values_in_a_stream(folders, tmp_path_factory, rows):
    """A stream has no types: every row is tokenised, or refused by number and column."""
    try:
        trainer = make_trainer(folders, tmp_path_factory.mktemp("out"), stream(rows))
        assert len(list(trainer.train_dataset)) == len(rows)
    except ValueError as error:
        refusal = str(error)
    else:
        return
    assert re.match(r"Row \d+ of the train dataset, column `\w+`: .+\. .+\.|The train dataset has no rows", refusal)


# Where and when


def large_table(n, **changes):
    """A million rows in Arrow, made without a Python loop; the last one can be changed."""
    ends = np.arange(n + 1, dtype=np.int32) * 2
    texts = pa.array([" Babe", " Heidi"]).take(pa.array(np.arange(2 * n) % 2))
    columns = {
        "prompt": pa.array([PROMPT]).take(pa.array(np.zeros(n, dtype=int))),
        "chosen": pa.array([" Alien"]).take(pa.array(np.zeros(n, dtype=int))),
        "rejected": pa.ListArray.from_arrays(pa.array(ends), texts),
    }
    table = pa.table(columns)
    if not changes:
        return Dataset(table)
    last = pa.Table.from_pylist([row(**changes)], schema=table.schema)
    return Dataset(pa.concat_tables([table.slice(0, n - 1), last]))


@pytest.mark.parametrize(
    "changes",
    [
        {"rejected": []},
        {"rejected": None},
        {"rejected": [None]},
        {"rejected": [" Alien"]},
        {"chosen": None},
        {"prompt": None},
    ],
    ids=["empty", "null", "null entry", "chosen", "null chosen", "null prompt"],
)
def test_one_row_of_a_million(build, monkeypatch, changes):
    """Found in Arrow's columns, before a model is loaded or a row tokenised, in Python by looking at two rows."""
    monkeypatch.setattr("dmpo_trl.preprocessing.dataset.tokenize_row", None)
    looked_at = []
    read = validate.read_row
    monkeypatch.setattr(validate, "read_row", lambda example, error: looked_at.append(example) or read(example, error))
    with pytest.raises(RowError, match=rf"^Row 999999 of the train dataset, column `{next(iter(changes))}`: "):
        build(large_table(1_000_000, **changes), model="no such model")
    assert len(looked_at) == 2


def large_table_of_several(n, **changes):
    """The same with two chosen completions a row."""
    table = large_table(n).data.table
    texts = pa.array([" Alien", " Ox"]).take(pa.array(np.arange(2 * n) % 2))
    several = pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * 2), texts)
    table = table.set_column(1, "chosen", several)
    last = pa.Table.from_pylist([row(chosen=[" Alien", " Ox"]) | changes], schema=table.schema)
    return Dataset(pa.concat_tables([table.slice(0, n - 1), last]))


@pytest.mark.parametrize(
    "changes",
    [{"chosen": []}, {"chosen": None}, {"chosen": [None]}, {"chosen": [" Ox", " Ox"]}, {"rejected": [" Babe", " Ox"]}],
    ids=str,
)
def test_one_row_of_a_million_with_several_chosen(monkeypatch, changes):
    looked_at = []
    read = validate.read_row
    monkeypatch.setattr(validate, "read_row", lambda example, error: looked_at.append(example) or read(example, error))
    with pytest.raises(RowError, match=rf"^Row 999999 of the train dataset, column `{next(iter(changes))}`: "):
        check_rows(large_table_of_several(1_000_000, **changes), "train")
    assert len(looked_at) == 2


def test_a_million_good_rows():
    check_rows(large_table_of_several(1_000_000), "train")
    check_rows(large_table(1_000_000), "train")


def test_selected_rows_are_counted_as_the_trainer_sees_them():
    dataset = Dataset.from_list([row(rejected=[]), row(), row(), row(rejected=[" Alien"])]).select([1, 3, 2])
    with pytest.raises(RowError, match=r"^Row 1 of the train dataset, column `rejected`: entry 0 equals"):
        check_rows(dataset, "train")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda good, bad: bad, "eval"),
        (lambda good, bad: {"cold": good, "warm": bad}, "eval_warm"),
        (lambda good, bad: DatasetDict(cold=good, warm=bad), "eval_warm"),
    ],
    ids=["dataset", "dict", "DatasetDict"],
)
@pytest.mark.parametrize("changes", [{"rejected": []}, {"rejected": [" Alien</s>"]}], ids=["seen", "tokenised"])
def test_evaluation_dataset(build, make, name, changes):
    good, bad = Dataset.from_list([row(), row()]), Dataset.from_list([row(), row(**changes)])
    with pytest.raises(RowError, match=rf"^Row 1 of the {name} dataset, column `rejected`: "):
        build(good, eval_dataset=make(good, bad))


def test_evaluation_dataset_given_later(build):
    trainer = build(Dataset.from_list([row()]))
    with pytest.raises(RowError, match=r"^Row 1 of the eval dataset, column `rejected`: the list is empty"):
        trainer.evaluate(Dataset.from_list([row(), row(rejected=[])]))
    with pytest.raises(ValueError, match="The eval dataset has no rows"):
        trainer.evaluate(Dataset.from_list([]))


def test_no_dataset(build):
    with pytest.raises(TypeError, match=r"The train dataset must be .*Dataset\.from_list"):
        build([row()])
    with pytest.raises(TypeError, match=r"The eval dataset must be"):
        build(Dataset.from_list([row()]), eval_dataset=[row()])


def test_types_that_differ_from_row_to_row():
    """Arrow refuses them when the dataset is made; a stream does not (test_any_values_in_a_stream)."""
    for rejected in (" Babe", {"title": " Babe"}, [3], [message("Babe")]):
        with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
            Dataset.from_list([row(), row(rejected=rejected)])


@pytest.mark.parametrize("workers", [0, 1])
def test_late_row_of_a_stream(build, workers):
    rows = [row()] * 5 + [row(rejected=[])] + [row()] * 4
    trainer = build(
        stream(rows), max_steps=5, per_device_train_batch_size=2, dataloader_num_workers=workers, logging_steps=1
    )
    with pytest.raises(RowError, match="Row 5 of the train dataset, column `rejected`: the list is empty"):
        trainer.train()
    assert_finite(trainer)


def test_stream_that_reaches_a_token_unknown_to_the_model(build):
    rows = [row()] * 5 + [row(rejected=[" Babe", f" <title {VOCAB_SIZE - 1}>"])] + [row()] * 4
    trainer = build(stream(rows), tokenizer=with_more_tokens(), max_steps=5, per_device_train_batch_size=2)
    with pytest.raises(RowError, match=r"^Row 5 of the tokenised train dataset, column `rejected_ids`: token \d+ is"):
        trainer.train()
    assert_finite(trainer)


def test_stream_that_reaches_more_tokens_than_learned_positions(build):
    rows = [row(), row(), row(prompt=PROMPT * 120), row()]
    trainer = build(stream(rows), model="gpt2", max_length=None, max_steps=2, per_device_train_batch_size=2)
    with pytest.raises(RowError, match=r"^Row 2 of the tokenised train dataset.*the model 1024 positions"):
        trainer.train()
    assert_finite(trainer)


def test_endless_stream_without_room(build, monkeypatch):
    monkeypatch.setattr("dmpo_trl.preprocessing.truncate._STREAM_PATIENCE", 100)
    endless = IterableDataset.from_generator(lambda: iter(row, None))
    with pytest.raises(ValueError, match=r"Nothing is left of the train dataset.*Raise `max_length`"):
        build(endless, max_length=4)


def test_error_in_a_process_of_its_own(build):
    """An exception that cannot be rebuilt in the parent process leaves it waiting for ever."""
    error = RowError("train", 3, "rejected", "the list is empty", "Drop the row")
    assert str(pickle.loads(pickle.dumps(error))) == str(type(error)(str(error))) == str(error)
    with pytest.raises(RowError, match=r"^Row 1 of the train dataset, column `rejected`: entry 0, .* the same tokens"):
        build(Dataset.from_list([row(), row(rejected=[" Alien</s>"])]), dataset_num_proc=2)


def test_prompt_shortened_to_keep_the_completions(build):
    example = row(prompt=PROMPT * 9, rejected=[" Babe", " Heidi, The Matrix"])
    tokenizer = make_tokenizer()
    prompt = tokenizer(example["prompt"])["input_ids"]
    completions = [ids[len(prompt) :] for ids in whole_sequences(tokenizer, example)]
    room = 40 - max(map(len, completions))
    options = {"max_length": 40, "truncation_mode": "keep_completion"}
    already = tokens(prompt_ids=prompt, chosen_ids=completions[0], rejected_ids=completions[1:])
    for rows in ([example], [already]):
        trainer = build(Dataset.from_list(rows), **options)
        assert_loss_is_the_formulas(trainer, [[prompt[-room:] + ids for ids in completions]])


@pytest.mark.slow
def test_prompt_of_10_000_tokens(build):
    example = row(prompt="ab " * 3333 + "a", rejected=[" Babe"])
    trainer = build(Dataset.from_list([example]), max_length=None)
    assert len(trainer.train_dataset[0]["prompt_ids"]) == 10_000
    assert_loss_is_the_formulas(trainer, [whole_sequences(make_tokenizer(), example)])


# Logits that are no numbers


def broken(tmp_path, spoil):
    model = make_model(num_hidden_layers=1)
    with torch.no_grad():
        spoil(model)
    model.save_pretrained(tmp_path / "broken")
    return str(tmp_path / "broken")


def spoil_weight(model):
    model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")


def overflow(model):
    model.half()
    model.model.norm.weight.fill_(6e4)


@pytest.mark.parametrize("share", ["auto", "true", "false"])
@pytest.mark.parametrize("spoil", [spoil_weight, overflow])
def test_logits_that_are_nan(build, tmp_path, request, spoil, share):
    with pytest.raises(ValueError, match=r"logits of LlamaForCausalLM are not finite.*`dtype`") as caught:
        build(
            Dataset.from_list([row()]),
            model=broken(tmp_path, spoil),
            prefix_sharing=share,
            model_init_kwargs={"dtype": "float16" if spoil is overflow else "float32"},
        )
    if (spoil, share) == (spoil_weight, "auto"):
        assert_documented(request, caught.value)


@pytest.mark.parametrize("share", ["auto", "false"])
def test_reference_logits_that_are_nan(folders, tmp_path, share):
    reference = make_model(num_hidden_layers=1)
    with torch.no_grad():
        spoil_weight(reference)
    with pytest.raises(ValueError, match="logits of LlamaForCausalLM are not finite"):
        DMPOTrainer(
            folders["llama"],
            ref_model=reference,
            args=DMPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", prefix_sharing=share),
            train_dataset=Dataset.from_list([row()]),
            processing_class=make_tokenizer(),
        )


def test_loss_that_is_nan_at_the_first_step(build, tmp_path):
    """Weights broken for one token, which the probe does not meet."""
    token = make_tokenizer()(" Alien")["input_ids"][0]

    def spoil(model):
        model.model.embed_tokens.weight[token] = float("nan")

    trainer = build(Dataset.from_list([row()]), model=broken(tmp_path, spoil))
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(FloatingPointError, match=r"not finite after 0 optimizer steps.*`learning_rate`"):
        trainer.train()
    torch.testing.assert_close(trainer.model.state_dict(), before, equal_nan=True)


def test_loss_that_becomes_nan(build):
    trainer = build(Dataset.from_list([row()] * 8), max_steps=8, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(FloatingPointError, match=r"not finite after \d optimizer step"):
        trainer.train()


def test_loss_that_is_nan_in_fp16_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        check_step(float("nan"), 3, fp16=True)
    assert "not finite. float16 overflows" in caplog.text
    check_step(0.5, 3, fp16=False)


def test_loss_that_becomes_nan_with_float16_weights_is_a_warning(build, caplog):
    """As in `DPOTrainer`, which trains on: weights in float16 are the user's choice."""
    trainer = build(
        Dataset.from_list([row()] * 8),
        model_init_kwargs={"dtype": "float16"},
        max_steps=8,
        learning_rate=1e4,
        max_grad_norm=0.0,
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "weights that are float16 themselves may become NaN" in caplog.text


def test_limits_are_those_of_the_sequence_that_is_computed():
    """The last token is predicted and needs no position."""
    model = make_model("gpt2", n_positions=16)
    fits = Dataset.from_list([tokens(prompt_ids=[9] * 13, rejected_ids=[[21, 22, 23, 2]])])
    check_limits(fits, "train", model, None, None)
    exceeds = Dataset.from_list([tokens(prompt_ids=[9] * 13, rejected_ids=[[21, 2], [21, 22, 23, 24, 2]])])
    with pytest.raises(
        RowError, match=r"^Row 0 .* it has 18 tokens, and the model 16 positions. Set `max_length` to at most 17"
    ):
        check_limits(exceeds, "train", model, None, None)
    check_limits(exceeds, "train", model, None, 17)


def test_limits_hold_for_a_dataset_given_to_evaluate(tmp_path):
    model = str(tmp_path / "model")
    make_model("gpt2", n_positions=32).save_pretrained(model)
    trainer = make_trainer({}, tmp_path, Dataset.from_list([row()]), model=model, max_length=None)
    rows = Dataset.from_list([row(), row(prompt="Watched: Alien. Next:" * 20)])
    with pytest.raises(RowError, match=r"^Row 1 of the tokenised eval dataset.* the model 32 positions"):
        trainer.evaluate(rows)
    make_model("llama").save_pretrained(tmp_path / "rotary")  # takes any length
    longer = make_trainer({}, tmp_path, rows, model=str(tmp_path / "rotary"), max_length=None)
    with pytest.raises(RowError, match=r"^Row 1 of the tokenised eval dataset.* the model 32 positions"):
        trainer.evaluate(longer.train_dataset)


def test_the_table_is_complete(request):
    """Every row of the table names a test that exists, and every case is in the table."""
    tests = {item.name for item in request.node.getparent(pytest.Module).collect()} | {
        item.name.partition("[")[0] for item in request.node.getparent(pytest.Module).collect()
    }
    table = documented()
    assert table.keys() <= tests
    cases = {f"test_refused[{name}]": "refused" for name in REFUSED}
    cases |= {f"test_trained[{name}]": "trained" for name in TRAINED}
    assert {name: outcome for name, (outcome, _) in table.items() if name in cases} == cases


def test_messages_in_the_docs_are_raised():
    """Every message that docs/bad-input.md quotes is one of the table's, which `test_refused` compares."""
    page = (Path(__file__).parents[2] / "docs" / "bad-input.md").read_text()
    quoted = re.findall(r"^> (.+)$", page, re.MULTILINE)
    quoted += re.findall(r"^\| ((?:Row \d|Nothing|The )[^|]+) \|", page, re.MULTILINE)
    assert len(quoted) == 8
    assert set(quoted) <= {text for outcome, text in documented().values() if outcome == "refused"}
