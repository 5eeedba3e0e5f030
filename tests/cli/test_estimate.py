"""`dmpo-trl estimate`: train's own options in, the cost model's numbers out, no weights read."""

import itertools
import math
import re

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support import make_model, make_tokenizer

from dmpo_trl.batching.lengths import BLOCK
from dmpo_trl.cli import estimate as command
from dmpo_trl.cli import main
from dmpo_trl.modeling.row_plan import ONE_ROW, RowPlan
from dmpo_trl.training.cost import BatchSize, ModelSize, TrainingOptions, step_cost

IN_BLOCKS = RowPlan(ONE_ROW, BLOCK, math.inf)
WIDE = {"head_dim": 16}  # heads as wide as attention in blocks takes them
LENGTHS = ["--prompt_tokens", "40", "--completion_tokens", "6", "--negatives", "7"]


@pytest.fixture
def config_folder(tmp_path):
    """A model's config without its weights."""
    folder = tmp_path / "model"
    make_model(**WIDE).config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def config(config_folder):
    return make_model(**WIDE).config


def estimate(capsys, *arguments):
    """The printed rows: name to (trie, copies)."""
    main(["estimate", *map(str, arguments)])
    output = capsys.readouterr().out
    rows = {}
    for line in output.splitlines():
        name, values = line[:22].strip(), line[22:].replace(",", "").split()
        if name and len(values) >= 2 and all(value.replace(".", "").isdigit() for value in values):
            rows[name] = tuple(map(float, values[:2]))
    return rows, output


def test_the_table_is_the_cost_models(capsys, config_folder, config):
    rows, output = estimate(
        capsys, "--model_name_or_path", config_folder, *LENGTHS, "--per_device_train_batch_size", 512,
        "--bf16", "False", "--gradient_checkpointing", "False",
    )  # fmt: skip
    lengths = [(40, [6] * 8)] * 512
    size = ModelSize.from_config(config)
    layouts = [BatchSize.trie(lengths, IN_BLOCKS), BatchSize.copies(lengths)]
    costs = [step_cost(size, layout, TrainingOptions()) for layout in layouts]
    assert rows["tokens"] == (512 * (40 + 8 * 5), 512 * 8 * 45)
    assert rows["TFLOPs"] == pytest.approx([cost.flops / 1e12 for cost in costs], abs=6e-4)
    assert rows["memory, GB"] == pytest.approx([cost.memory / 1e9 for cost in costs], abs=6e-4)
    assert rows["- recomputation"] == (0, 0)
    assert "N = 7, prompts of 40 tokens, completions of 6" in output


def test_the_yaml_file_of_train_and_its_options_count(capsys, config_folder, config, tmp_path):
    yaml = tmp_path / "train.yaml"
    yaml.write_text(
        f"model_name_or_path: {config_folder}\nuse_peft: true\nlora_r: 4\nlora_target_modules: all-linear\n"
        "load_in_4bit: true\nprecompute_ref_log_probs: true\nper_device_train_batch_size: 512\nbeta: 0.3\n"
        f"output_dir: {tmp_path}\nranking_users: 10\n"
    )
    rows, output = estimate(capsys, "--config", yaml, *LENGTHS)  # bf16 and checkpointing: TRL's defaults
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    options = TrainingOptions(
        half_precision=True, gradient_checkpointing=True, precomputed_reference=True, load_in_4bit=True
    )
    layout = BatchSize.trie([(40, [6] * 8)] * 512, IN_BLOCKS)
    cost = step_cost(ModelSize.from_config(config, lora), layout, options)
    assert rows["TFLOPs"][0] == pytest.approx(cost.flops / 1e12, abs=6e-4)
    assert rows["memory, GB"][0] == pytest.approx(cost.memory / 1e9, abs=6e-4)
    assert rows["- recomputation"][0] > 0
    assert rows["- reference"] == (0, 0)
    assert "(LoRA)" in output


@pytest.mark.parametrize(("loss", "has_reference"), [("sampled_softmax", False), ("mppo", False), ("softmax", True)])
def test_a_loss_without_reference_costs_none(capsys, config_folder, loss, has_reference):
    arguments = ["--model_name_or_path", config_folder, *LENGTHS, "--per_device_train_batch_size", 512]
    rows, _ = estimate(capsys, *arguments, "--loss_type", loss)
    assert (rows["- reference"][1] > 0) == has_reference
    assert rows["memory, GB"][0] == pytest.approx(
        estimate(capsys, *arguments, "--precompute_ref_log_probs", str(not has_reference))[0]["memory, GB"][0]
    )


def test_the_largest_n_fits_and_the_next_does_not(capsys, config_folder, config):
    arguments = ["--model_name_or_path", config_folder, *LENGTHS, "--bf16", "False", "--memory_gb", 0.05]
    rows, _ = estimate(capsys, *arguments)
    options = TrainingOptions(gradient_checkpointing=True)
    size = ModelSize.from_config(config)
    layouts = [lambda lengths: BatchSize.trie(lengths, IN_BLOCKS), BatchSize.copies]
    for found, layout in zip(rows["largest N in 0.05 GB"], layouts, strict=True):
        memory = [step_cost(size, layout([(40, [6] * (int(found) + n))] * 8), options).memory for n in (1, 2)]
        assert memory[0] <= 0.05e9 < memory[1]


def faster(output):
    """Of each recommendation, the options and the times fewer FLOPs."""
    found = re.findall(r"^(--.*): ([0-9.]+) times fewer FLOPs, ([0-9.]+) GB$", output, re.MULTILINE)
    return {options: (float(times), float(memory)) for options, times, memory in found}


def test_the_two_switches_that_matter_most_are_recommended_where_they_fit(capsys, config_folder, config):
    arguments = ["--model_name_or_path", config_folder, *LENGTHS, "--bf16", "False"]
    arguments += ["--per_device_train_batch_size", 64]
    layout = BatchSize.trie([(40, [6] * 8)] * 64, IN_BLOCKS)
    size, costs = ModelSize.from_config(config), {}
    for checkpointing, precomputed in itertools.product((True, False), repeat=2):
        options = TrainingOptions(gradient_checkpointing=checkpointing, precomputed_reference=precomputed)
        costs[checkpointing, precomputed] = step_cost(size, layout, options)
    off, precompute = "--gradient_checkpointing False", "--precompute_ref_log_probs True"
    cases = {off: (False, False), precompute: (True, True), f"{off} {precompute}": (False, True)}
    _, output = estimate(capsys, *arguments, "--memory_gb", 100)
    expected = {
        name: pytest.approx((costs[True, False].flops / costs[case].flops, costs[case].memory / 1e9), abs=6e-3)
        for name, case in cases.items()
    }
    assert faster(output) == expected
    # Between what both take and what layers that keep their activations take beside a reference
    between = (costs[False, True].memory + costs[False, False].memory) / 2e9
    assert set(faster(estimate(capsys, *arguments, "--memory_gb", between)[1])) == {precompute, f"{off} {precompute}"}
    _, too_small = estimate(capsys, *arguments, "--memory_gb", 0.001)
    assert faster(too_small) == {}
    assert too_small.partition("does not fit in 0.001 GB")[2].count("times fewer FLOPs") == 3
    _, of_no_memory = estimate(capsys, *arguments)  # what each would save and take
    assert faster(of_no_memory) == expected
    assert "if the memory is there" in of_no_memory
    assert "largest N" not in of_no_memory
    arguments += ["--memory_gb", 100, "--gradient_checkpointing", "False"]
    assert set(faster(estimate(capsys, *arguments)[1])) == {precompute}


def test_the_memory_of_a_gpu_that_is_there_is_taken(capsys, config_folder, monkeypatch):
    monkeypatch.setattr(command, "_memory_of_gpu", lambda: 24.0)
    rows, output = estimate(capsys, "--model_name_or_path", config_folder, *LENGTHS)
    assert rows["largest N in 24 GB"][0] > 0
    assert "fits in 24 GB" in output
    assert "fits in 0.05 GB" in estimate(
        capsys, "--model_name_or_path", config_folder, *LENGTHS, "--memory_gb", 0.05
    )[1]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "plan", "words"),
    [
        ("llama", [], IN_BLOCKS, "on CUDA, the trie attended to in blocks"),
        ("llama", ["--use_cpu", "True"], RowPlan(None, 1, 6 * 32), "on a CPU"),
        ("llama", ["--block_attention", "False"], RowPlan(None, 16, 6 * 32 / 7.6), "block_attention is False"),
        ("llama", ["--torch_compile", "True"], RowPlan(None, 16, 6 * 32 / 7.6), "torch_compile is set"),
        ("gemma2", [], RowPlan(None, 16, 6 * 32 / 7.6), "with dense masks: the model's attention is eager"),
    ],
)
def test_rows_and_attention_are_those_of_the_device_that_trains(capsys, tmp_path, name, options, plan, words):
    config = make_model(name, **WIDE).config
    config.save_pretrained(tmp_path)
    arguments = ["--model_name_or_path", tmp_path, *LENGTHS, "--per_device_train_batch_size", 512]
    rows, output = estimate(capsys, *arguments, "--gradient_checkpointing", "False", "--bf16", "False", *options)
    layout = BatchSize.trie([(40, [6] * 8)] * 512, plan)
    cost = step_cost(ModelSize.from_config(config), layout, TrainingOptions())
    assert rows["tokens with padding"][0] == layout.padded_tokens
    assert rows["TFLOPs"][0] == pytest.approx(cost.flops / 1e12, abs=6e-4)
    assert rows["memory, GB"][0] == pytest.approx(cost.memory / 1e9, abs=6e-4)
    assert words in output


def test_lengths_are_measured_on_a_dataset(capsys, config_folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": "Watched: Alien. Next:", "chosen": " Aliens", "rejected": [" Babe", " Heidi"]}] * 4
    Dataset.from_list(rows).to_parquet(data / "train.parquet")
    found, output = estimate(
        capsys, "--model_name_or_path", config_folder, "--dataset_name", data, "--per_device_train_batch_size", 2
    )
    tokenizer = make_tokenizer()
    prompt = len(tokenizer("Watched: Alien. Next:")["input_ids"])
    titles = [
        len(tokenizer(f"Watched: Alien. Next:{title}</s>")["input_ids"]) for title in (" Aliens", " Babe", " Heidi")
    ]
    # Both rows of a batch are the same: the trie holds them once
    assert found["tokens"] == (prompt + sum(length - prompt - 1 for length in titles), 2 * sum(titles) - 6)
    assert found["tokens with padding"][0] == BLOCK  # of the one row that attention in blocks takes
    assert "4 rows of" in output


def test_each_of_several_chosen_completions_is_counted(capsys, config_folder, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": "Watched: Alien. Next:", "chosen": [" Aliens", " Ox"], "rejected": [" Babe", " Heidi"]}] * 4
    Dataset.from_list(rows).to_parquet(data / "train.parquet")
    found, output = estimate(capsys, "--model_name_or_path", config_folder, "--dataset_name", data)
    titles = [
        len(make_tokenizer()(f"Watched: Alien. Next:{title}</s>")["input_ids"])
        for title in (" Aliens", " Ox", " Babe", " Heidi")
    ]
    assert found["tokens"][1] == 4 * (sum(titles) - len(titles))
    assert "4 rows of" in output
    assert "N = 2," in output


@pytest.mark.parametrize("options", [[], ["--load_in_4bit"]])
def test_an_adapter_that_goes_on_costs_what_a_new_one_of_its_kind_does(capsys, config_folder, tmp_path, options):
    adapter = tmp_path / "adapter"
    model = get_peft_model(make_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(config_folder)
    model.save_pretrained(adapter)
    Dataset.from_list([{"prompt": "Next:", "chosen": " Aliens", "rejected": [" Babe"]}] * 2).to_parquet(
        tmp_path / "train.parquet"
    )
    data = ["--dataset_name", tmp_path, *options]  # its tokenizer is that of the base model
    new = ["--use_peft", "--lora_r", 4, "--lora_target_modules", "q_proj", "v_proj"]
    goes_on, output = estimate(capsys, "--model_name_or_path", adapter, *LENGTHS, *options)
    assert goes_on == estimate(capsys, "--model_name_or_path", config_folder, *LENGTHS, *options, *new)[0]
    assert "trained (LoRA)" in output
    measured, _ = estimate(capsys, "--model_name_or_path", adapter, *data)
    assert measured == estimate(capsys, "--model_name_or_path", config_folder, *data, *new)[0]
    with pytest.raises(SystemExit, match="is an adapter, which goes on training: leave --use_peft out"):
        estimate(capsys, "--model_name_or_path", adapter, *LENGTHS, *new)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one of --prompt_tokens"),
        (["--prompt_tokens", "5"], "needs --completion_tokens"),
        (["--prompt_tokens", "0", "--completion_tokens", "5"], "--prompt_tokens must be at least 1, it is 0"),
        (["--prompt_tokens", "5", "--completion_tokens", "0"], "--completion_tokens must be at least 1, it is 0"),
        (["--prompt_tokens", "2000", "--completion_tokens", "5"], "exceed --max_length 1024"),
        ([*LENGTHS, "--load_in_4bit"], "add --use_peft"),
        ([*LENGTHS, "--load_in_8bit"], "no estimate for --load_in_8bit"),
    ],
)
def test_mistakes_are_named(config_folder, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["estimate", "--model_name_or_path", str(config_folder), *arguments])


def test_a_model_is_needed():
    with pytest.raises(SystemExit, match="--model_name_or_path names the model"):
        main(["estimate", *LENGTHS])


def test_a_split_that_is_not_there_is_named(config_folder, tmp_path):
    Dataset.from_list([{"prompt": "Next:", "chosen": " Aliens", "rejected": [" Babe"]}]).to_parquet(
        tmp_path / "train.parquet"
    )
    arguments = ["--model_name_or_path", str(config_folder), "--dataset_name", str(tmp_path)]
    with pytest.raises(SystemExit, match="no split 'training'; set --dataset_train_split to one of train"):
        main(["estimate", *arguments, "--dataset_train_split", "training"])
