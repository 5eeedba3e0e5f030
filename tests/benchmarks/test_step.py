"""The benchmark of a step on a tiny model: that it runs, counts rightly and stops where a side is wrong."""

import csv
import importlib
import itertools
import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from support import load_script
from torch.utils.flop_counter import FlopCounterMode

SIDES = ["full logits", "trl fused", "trl fused, checkpointing", "copies", "cached prompt", "trie"]
SIDES += ["trie, precomputed reference", "trl pairs", "trie, sigmoid", "sft"]


@pytest.fixture(scope="module")
def step():
    with load_script("benchmarks/step.py") as module:
        yield module


@pytest.fixture(scope="module")
def sides(step):
    return importlib.import_module("sides")


@pytest.fixture(scope="module")
def models(step):
    return importlib.import_module("models")


def read(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "step.csv").open() as file:
        return {(row["case"], row["side"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("lora", [[], ["--lora"]])
def test_sides_agree_and_tokens_are_counted(step, tmp_path, capsys, lora):
    step.main(["--tiny", "--negatives", "1", "3", "--rounds", "2", "--output", str(tmp_path), *lora])
    rows = read(tmp_path)
    assert list(rows) == [(n, s) for n in ("N=1", "N=3") for s in SIDES]
    # A prompt of 40 letters, the chosen "abcde", the rejected "ab000", "ab001", "ab002"
    tokens = {side: int(rows["N=3", side]["tokens"]) for side in SIDES}
    assert tokens["full logits"] == tokens["trl fused"] == tokens["trl fused, checkpointing"] == 4 * 45
    assert tokens["trl pairs"] == 3 * 2 * 45
    assert tokens["copies"] == 4 * 44
    assert tokens["cached prompt"] == 40 + 4 * 4
    trie = 40 + len("ab") + len("cd") + len("00")
    assert {tokens[side] for side in SIDES if side.startswith("trie") or side == "sft"} == {trie}
    for row in rows.values():
        assert float(row["seconds"]) > 0
        if row["side"] != "sft":  # another job
            assert float(row["lowest"]) <= float(row["seconds ratio"]) <= float(row["highest"])
    assert capsys.readouterr().out.count("| N=3 |") == len(SIDES)


def test_slow_sides_take_one_turn(step, tmp_path, monkeypatch):
    turns, run = [], step.run_or_none
    monkeypatch.setattr(step, "run_or_none", lambda side, *args: turns.append(side.loss) or run(side, *args))
    chosen = ["--sides", "trl pairs", "trie", "--once", "full logits", "trl pairs", "--rounds", "3"]
    step.main(["--tiny", "--negatives", "2", *chosen, "--output", str(tmp_path)])
    assert turns == ["dmpo", "dmpo", "dmpo", "sigmoid", "dmpo", "dmpo"]  # the first warms up
    rows = read(tmp_path)
    assert [side for _, side in rows] == ["full logits", "trie", "trl pairs"]
    assert float(rows["N=2", "full logits"]["seconds ratio"]) == 1
    ratio = float(rows["N=2", "trie"]["seconds ratio"])
    assert ratio == float(rows["N=2", "trie"]["lowest"]) == float(rows["N=2", "trie"]["highest"])


def test_what_is_written_names_machine_versions_and_commit(step, tmp_path, assert_can_be_appended):
    arguments = ["--tiny", "--negatives", "1", "3", "--batch_sizes", "1", "2", "--sides", "trie", "--rounds", "1"]
    step.main([*arguments, "--profile", "--output", str(tmp_path), "--plot", str(tmp_path / "plots"), "--name", "run"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plots", "run-profile.csv", "run.csv"]
    plots = [f"run-seconds{what}-against-{x}.svg" for what in ("", "-ratio") for x in ("batch", "negatives")]
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == sorted(plots)
    for name in ("run.csv", "run-profile.csv"):
        assert_can_be_appended(tmp_path / name, name.replace("run", "step"))
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(f"torch {version('torch')}" in row["versions"] for row in rows)
        assert all("threads used" in row["machine"] and row["commit"] for row in rows)
        assert all(row["command"].startswith("python benchmarks/step.py --tiny") for row in rows)
    shares = {row["operation"]: float(row["share"]) for row in rows}
    assert "aten::mm" in shares
    assert 0 < sum(shares.values()) <= 1


def test_a_second_run_is_appended_and_other_columns_are_refused(step, tmp_path):
    arguments = ["--tiny", "--negatives", "1", "--sides", "trie", "--rounds", "1", "--output", str(tmp_path)]
    for _ in range(2):
        step.main(arguments)
    with (tmp_path / "step.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["side"] for row in rows] == ["full logits", "trie"] * 2
    report = importlib.import_module("report")
    with pytest.raises(ValueError, match=r"step\.csv has the columns .* Give another --name"):
        report.add_rows(tmp_path, "step", "python", {}, [{"side": "trie"}])


def test_an_example_at_a_time_is_what_the_batch_computes(step, tmp_path):
    sides = ["trie", "trie, one at a time"]
    arguments = ["--tiny", "--negatives", "2", "--batch_sizes", "3", "--rounds", "1", "--sides", *sides]
    step.main([*arguments, "--copies_at_once", "3", "--output", str(tmp_path)])
    rows = read(tmp_path)
    assert {rows["N=2, batch 3", side]["tokens"] for side in sides} == {str(3 * (40 + 2 + 2 + 2))}


def test_rows_that_share_a_history_stand_once(step, tmp_path):
    history = "Watched: " + "x" * 50
    rows = [{"instruction": f"{history} {i}", "input": "", "output": ["ab", "cd"]} for i in range(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    step.main(["--tiny", "--rows", str(tmp_path / "rows.json"), "--rounds", "1", "--output", str(tmp_path)])
    outcome = read(tmp_path)
    assert outcome["rows.json", "full logits"]["tokens"] == str(20 * (61 + 2))
    assert outcome["rows.json", "trie"]["tokens"] == str(60 + 10 * (1 + 2))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("score_with_trl", "'trl fused' disagrees with 'full logits': loss"),
        ("score_with_cache", "'cached prompt' disagrees with 'full logits': loss"),
        ("score_with_ours", "'copies' disagrees with 'full logits': loss"),
        ("score_pairs", "'trie, sigmoid' disagrees with 'trl pairs': loss"),
    ],
)
def test_a_side_that_computes_something_else_is_noted_and_fails_the_run(
    step, sides, monkeypatch, score, message, tmp_path
):
    """At its end, when everything is written: what took minutes of a GPU is not lost."""
    right = getattr(sides, score)
    monkeypatch.setattr(sides, score, lambda model, batch: 1.5 * right(model, batch))
    with pytest.raises(SystemExit, match=message):
        step.main(["--tiny", "--negatives", "2", "--rounds", "1", "--output", str(tmp_path)])
    rows = read(tmp_path)
    assert {side for _, side in rows} == set(SIDES)
    assert any("disagrees" in row["note"] for row in rows.values())
    assert rows["N=2", "full logits"]["note"] == ""


def test_a_side_whose_gradient_is_another_fails_the_run(step, sides, monkeypatch):
    def detached(model, batch):
        logps = right(model, batch)
        return torch.cat([logps[:1].detach(), logps[1:]])

    right = sides.score_with_cache
    monkeypatch.setattr(sides, "score_with_cache", detached)
    with pytest.raises(SystemExit, match=r"'cached prompt' disagrees .* gradient norm"):
        step.main(["--tiny", "--negatives", "2", "--rounds", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "llama-9b"], "Unknown --shape 'llama-9b'"),
        (["--tiny", "--four_bit"], "--four_bit needs --lora"),
        (["--tiny", "--rounds", "0"], "--rounds 0 measures nothing"),
        (["--tiny", "--sides", "trie", "--once", "copies"], r"--once names \['copies'\], which --sides does not"),
    ],
)
def test_settings_that_make_no_sense_are_refused(step, arguments, message):
    with pytest.raises(ValueError, match=message):
        step.main(arguments)


def test_a_gpu_has_kernels_of_its_own(sides, monkeypatch):
    options = {"copies_at_once": 16, "several": False, "compiled": False}
    on_cpu = set(sides.make_sides(32, device="cpu", **options))
    monkeypatch.setattr(sides, "is_flash_attn_2_available", lambda: True)
    on_gpu = sides.make_sides(32, device="cuda", **options)
    own = {"copies, FlashAttention", "copies, one varlen row", "trl tree", "trie, FlexAttention"}
    assert set(on_gpu) - on_cpu == own
    assert on_gpu["copies, FlashAttention"].attention == "flash_attention_2"
    assert on_gpu["trie, FlexAttention"].attention == "trie_sdpa_blocks"


def test_positions_of_a_user_grow_inside_one_another(step, tmp_path):
    """A tree of all positions of a user, in which each title but the last is a part of the next prompt."""
    examples = importlib.import_module("cases").position_examples(1, 3, 2, 256)
    for example, following in itertools.pairwise(examples):
        assert following["prompt_ids"] == example["prompt_ids"] + example["chosen_ids"]
    sides = ["copies", "copies, one varlen row", "trie", "trie, one at a time"]
    arguments = ["--tiny", "--negatives", "2", "--positions", "3", "--rounds", "1", "--no_baseline", "--sides", *sides]
    step.main([*arguments, "--output", str(tmp_path)])
    rows = read(tmp_path)
    assert [side for _, side in rows] == sides
    # The longest prompt and what follows it: 270 and 9; two rejected titles of 9 at each position. A node that two
    # titles begin with by chance would make it one less
    assert int(rows["N=2, batch 3", "trie"]["tokens"]) in range(270 + 9 + 3 * 2 * 9 - 3, 270 + 9 + 3 * 2 * 9 + 1)
    copies = 3 * sum(length + 9 for length in (250, 260, 270))
    assert {rows["N=2, batch 3", side]["tokens"] for side in sides[:2]} == {str(copies)}
    assert rows["N=2, batch 3", "copies, one varlen row"]["padded"] == str(copies)
    assert not any(row["note"] for row in rows.values())
    with pytest.raises(ValueError, match="--positions makes random tokens"):
        step.main(["--positions", "3", "--model", str(tmp_path)])


def test_trls_own_trie_computes_the_same(step, tmp_path):
    """With more tokens than ours: it forks one token early, and has the last tokens, which predict nothing."""
    sides = ["copies", "trl tree", "trie"]
    step.main(["--tiny", "--negatives", "1", "4", "--batch_sizes", "2", "--rounds", "1", "--sides", *sides,
               "--no_baseline", "--output", str(tmp_path)])  # fmt: skip
    rows = read(tmp_path)
    assert not any(row["note"] for row in rows.values())
    # 40 letters and "a"; a "b" of its own for "c" and for "0"; "cde"; "0", and the last two of "ab000" .. "ab003"
    assert rows["N=4, batch 2", "trl tree"]["tokens"] == str(2 * (41 + 2 + 3 + 1 + 4 * 2))
    assert rows["N=4, batch 2", "trie"]["tokens"] == str(2 * (40 + 2 + 2 + 2))


@pytest.mark.parametrize("memory", [[], ["--memory", "--rounds", "0"]], ids=["times", "memory"])
def test_a_side_that_cannot_run_is_a_row_that_says_why(step, sides, tmp_path, monkeypatch, memory):
    monkeypatch.setattr(sides.tree_row, "obstacle", lambda device_type: "TRL's kernels are not to be had here: none")
    options = ["--negatives", "2", "--rounds", "1", "--no_baseline", "--sides", "trl tree", "trie", *memory]
    step.main(["--tiny", *options, "--output", str(tmp_path)])
    rows = read(tmp_path)
    assert rows["N=2", "trl tree"]["note"] == "TRL's kernels are not to be had here: none"
    assert rows["N=2", "trl tree"]["seconds"] == "nan"
    assert (float(rows["N=2", "trie"]["seconds"]) > 0) is not bool(memory)  # memory is measured beside other work
    assert (float(rows["N=2", "trie"]["peak_gb"]) > 0) is bool(memory)


def test_without_its_kernels_trls_attention_says_so(sides):
    """`kernels` is not installed, or has no kernel for this machine."""
    assert "not to be had here" in sides.tree_row.obstacle("cuda")
    assert sides.tree_row.obstacle("cpu") == ""


def test_an_unknown_side_is_refused(step):
    with pytest.raises(SystemExit, match=r"No side is called \['tree'\]"):
        step.main(["--tiny", "--sides", "tree"])


def test_out_of_memory_is_a_row(step, sides, tmp_path, monkeypatch):
    def out_of_memory(model, batch):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sides, "score_with_full_logits", out_of_memory)
    step.main(["--tiny", "--negatives", "2", "--rounds", "1", "--output", str(tmp_path)])
    rows = read(tmp_path)
    assert rows["N=2", "full logits"]["note"] == "out of memory"
    assert rows["N=2", "trie"]["seconds ratio"] == "nan"
    assert float(rows["N=2", "trie"]["seconds"]) > 0


def test_prompts_are_cut_or_extended_at_the_front(step):
    fit_prompt = importlib.import_module("cases").fit_prompt
    assert fit_prompt([1, 2, 3], 2) == [2, 3]
    assert fit_prompt([1, 2, 3], 7) == [3, 1, 2, 3, 1, 2, 3]
    assert fit_prompt([1, 2, 3], None) == [1, 2, 3]


@pytest.mark.parametrize("lora", [False, True])
def test_flops_are_those_that_torch_counts(models, lora):
    """With every token seen by every other, as eager attention computes it. Some releases multiply for the angles."""
    loaded = models.load_models(models.ModelSettings(tiny=True, lora=lora))
    base = loaded.bases[0]
    base.set_attn_implementation("eager")
    work = models.Work(tokens=24, seen=24**2, projected=24)
    ids, adapter = torch.arange(24)[None], loaded.adapter_weights
    with FlopCounterMode(display=False) as angles:
        base.model.rotary_emb(torch.zeros(1, 24, base.config.hidden_size), torch.arange(24)[None])
    with FlopCounterMode(display=False) as forward:
        logits = loaded.policy(input_ids=ids, use_cache=False).logits
    assert forward.get_total_flops() - angles.get_total_flops() == models.forward_flops(base.config, work, adapter)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    expected = models.backward_flops(base.config, work, adapter)
    if lora:  # nothing below the first layer asks for a gradient: its q, k and v need none for their input
        config = base.config
        expected -= 3 * 2 * 24 * (config.hidden_size**2 + 16 * config.hidden_size)
    assert backward.get_total_flops() == expected


def test_a_shape_has_the_size_in_its_name(models):
    parameters = {
        name: models.layer_weights(c) + c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
        for name, c in models.SHAPES.items()
    }
    assert parameters["smollm2-135m"] == pytest.approx(134.5e6, rel=1e-3)  # from the model cards
    assert parameters["llama-1b"] == pytest.approx(1.24e9, rel=1e-2)
    assert parameters["llama-8b"] == pytest.approx(8.03e9, rel=1e-2)
    assert parameters["qwen-0.6b"] == pytest.approx(0.596e9, rel=1e-2)
    assert parameters["qwen-1.7b"] == pytest.approx(1.72e9, rel=1e-2)
    assert parameters["qwen-8b"] == pytest.approx(8.19e9, rel=1e-2)


def test_the_expanded_cache_does_the_work_of_a_trie(sides):
    """Of one whose completions have nothing in common."""
    example = {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6], "rejected_ids": [[7, 8], [9, 10, 11, 12]]}
    made = sides.make_sides(8, device="cpu", copies_at_once=16, several=False, compiled=False)
    cached, trie = (made[name].count(made[name].collate([example])) for name in ("cached prompt", "trie"))
    assert cached == trie
    assert trie.tokens == 3 + 2 + 1 + 3
    assert trie.seen == 1 + 2 + 3 + (4 + 5) + 4 + (4 + 5 + 6)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_step(step):
    example = {"prompt_ids": [1] * 2000, "chosen_ids": [2, 3], "rejected_ids": [[4, i] for i in range(15)]}
    case = step.Case("N=15", [[example]], 15, 2000, 1)
    logits_gb = 16 * 2000 * 256 * 4 / 1e9
    with_logits, trie = (
        step.measure_memory(step.Settings(tiny=True), side, case).peak_gb for side in ("full logits", "trie")
    )
    # Logits and their log-softmax; what a process needs besides differs from machine to machine
    assert with_logits - trie > logits_gb


def test_checkpointing_computes_layers_again_and_only_where_asked_for(sides, models):
    loaded = models.load_models(models.ModelSettings(tiny=True))
    calls = []
    # Before, not after: the second pass stops as soon as it has what the gradient needs
    loaded.bases[0].model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    varlen = "copies, one varlen row"
    names = ["trl fused, checkpointing", "trl fused", f"{varlen}, checkpointing", varlen]
    made = sides.make_sides(32, device="cpu", copies_at_once=16, several=False, compiled=False, only=names)
    run_step, tiny_examples = (
        importlib.import_module("measure").run_step,
        importlib.import_module("cases").tiny_examples,
    )
    for name, expected in zip(names, (2, 1, 2, 1), strict=True):
        calls.clear()
        run_step(made[name], loaded, [tiny_examples(1, 3)])
        assert len(calls) == expected


def test_adapters_are_computed_in_half_precision_as_in_the_trainer(step, models, sides):
    """Though their weights are float32, whose products a trainer does not compute."""
    loaded = models.load_models(models.ModelSettings(tiny=True, lora=True, dtype="bfloat16"))
    seen = []
    (adapter,) = loaded.bases[0].model.layers[0].mlp.down_proj.lora_A.values()
    assert adapter.weight.dtype == torch.float32
    adapter.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    side = sides.make_sides(32, device="cpu", copies_at_once=16, several=False, compiled=False)["trie"]
    importlib.import_module("measure").run_step(side, loaded, [importlib.import_module("cases").tiny_examples(1, 3)])
    assert set(seen) == {torch.bfloat16}
