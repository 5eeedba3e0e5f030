"""An exported folder recommends what the adapter does, loads everywhere, and appears whole or not at all."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from support import make_tokenizer, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmpo_trl.cli import main
from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Prior, Recommender, TitleArrays, TitleGeneration
from dmpo_trl.recommend.exporting import check_export, export

HISTORY = ["Alien", "Heidi"]


def save_adapter(folder, items, template=MOVIES, config=None, base="llama", **options):
    """An adapter that changes what comes out, in folder/adapter, beside its base model."""
    save_model(folder / "base", base, **options)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = get_peft_model(model, config or LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    Recommender(model, make_tokenizer(), items, template, score="mean").save_pretrained(folder / "adapter")
    return str(folder / "adapter")


def assert_same(one, other):
    assert [item.item for item in one] == [item.item for item in other]
    assert [item.score for item in one] == pytest.approx([item.score for item in other], abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_the_export_recommends_what_the_adapter_does(items, tmp_path, capsys, base):
    adapter, out = save_adapter(tmp_path, items, base=base), tmp_path / "out"
    main(["export", "--model", adapter, "--output_dir", str(out)])
    printed = capsys.readouterr().out
    assert f"The model (float32, {(out / 'model.safetensors').stat().st_size / 1e6:,.1f} MB) and its 14" in printed
    assert float(printed.split("by ")[1].split()[0]) < 1e-4
    expected, exported = Recommender.from_pretrained(adapter), Recommender.from_pretrained(out)
    untrained = Recommender.from_pretrained(tmp_path / "base", items=items, template=MOVIES)
    assert exported.score == "mean"
    assert_same(exported.recommend(HISTORY, 12), expected.recommend(HISTORY, 12))
    assert_same(exported.rank(HISTORY, items["item"].to_list()), expected.rank(HISTORY, items["item"].to_list()))
    score, before = exported.rank(HISTORY, ["Babe"])[0].score, untrained.rank(HISTORY, ["Babe"])[0].score
    assert abs(score - before) > 0.01  # the adapter is in it


def test_plain_transformers_loads_the_export(items, tmp_path):
    out = tmp_path / "out"
    main(["export", "--model", save_adapter(tmp_path, items), "--output_dir", str(out)])
    assert not list(out.glob("adapter*"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer.chat_template == make_tokenizer().chat_template
    recommender = Recommender.from_pretrained(out)
    generation = TitleGeneration(recommender)
    titles, own = TitleArrays.load(out / "titles.npz"), generation.titles(HISTORY)
    assert all(np.array_equal(getattr(titles, name), getattr(own, name)) for name in TitleArrays.__dataclass_fields__)
    inputs = generation.inputs([HISTORY])
    found = inputs.recommendations(model.generate(**inputs.arguments(num_beams=14)))[0]
    assert {one.item for one in found} == {one.item for one in recommender.recommend(HISTORY, 14)}
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert {"config.json", "items.parquet", "model.safetensors", "recommender.json", "titles.npz"} < files.keys()
    assert pl.read_parquet(out / "items.parquet").equals(items)


def test_a_whole_model_is_exported_too_and_titles_need_a_template_without_candidates(items, tmp_path, caplog):
    save_model(tmp_path / "model")
    template = replace(MOVIES, candidates="Choose from: ")
    recommender = Recommender.from_pretrained(tmp_path / "model", items=items, template=template)
    with caplog.at_level("INFO", "dmpo_trl"):
        assert export(recommender, tmp_path / "out") == 0
    assert "so titles.npz is left out" in caplog.text
    assert not (tmp_path / "out" / "titles.npz").exists()
    assert_same(
        Recommender.from_pretrained(tmp_path / "out").rank(HISTORY, ["Babe", "Alien 3"]),
        recommender.rank(HISTORY, ["Babe", "Alien 3"]),
    )


def test_only_an_earlier_export_is_replaced(items, tmp_path):
    adapter, out = save_adapter(tmp_path, items), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    arguments = ["export", "--model", adapter, "--output_dir", str(out)]
    with pytest.raises(SystemExit, match="is not empty and was not written by dmpo-trl export"):
        main([*arguments, "--overwrite"])
    assert [file.name for file in out.iterdir()] == ["notes.txt"]
    (out / "notes.txt").unlink()
    main(arguments)
    weights = (out / "model.safetensors").stat()
    with pytest.raises(SystemExit, match=r"holds an exported model already; .* set --overwrite"):
        main(arguments)
    assert (out / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    main([*arguments, "--overwrite"])
    assert (out / "model.safetensors").stat().st_ino != weights.st_ino


def test_an_export_that_fails_leaves_what_was_there(items, tmp_path, monkeypatch):
    adapter, out = save_adapter(tmp_path, items), tmp_path / "out"
    arguments = ["export", "--model", adapter, "--output_dir", str(out)]
    main(arguments)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def fails(*_):
        raise MemoryError("full")

    monkeypatch.setattr("dmpo_trl.recommend.exporting._write_titles", fails)
    with pytest.raises(SystemExit, match="Memory ran out"):
        main([*arguments, "--overwrite"])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out"]


def test_a_quantised_base_is_refused_before_it_is_loaded(items, tmp_path):
    adapter = save_adapter(tmp_path, items)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    for model in (adapter, str(tmp_path / "base")):
        with pytest.raises(SystemExit, match=r"base are quantised \(bitsandbytes\).* full-precision model"):
            main(["export", "--model", model, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_learns_a_prompt_is_refused(items, tmp_path):
    adapter = save_adapter(tmp_path, items, config=PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(SystemExit, match=r"learns a prompt .*PROMPT_TUNING.*, which cannot be merged"):
        main(["export", "--model", adapter, "--output_dir", str(tmp_path / "out")])


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:Setting `save_embedding_layers` to `True`")
@pytest.mark.parametrize(
    ("base", "layers", "changed"),
    [
        ("llama", ["q_proj", "lm_head"], "lm_head"),
        ("llama", ["q_proj", "embed_tokens"], "model.embed_tokens"),
        ("llama", r".*(lm_head|q_proj)", "lm_head"),
        ("gpt2", ["c_attn", "wte"], "transformer.wte"),
    ],
)
def test_an_adapter_of_an_embedding_that_is_the_output_layer_too_is_refused_before_it_is_loaded(
    items, tmp_path, monkeypatch, base, layers, changed
):
    config = LoraConfig(r=4, target_modules=layers, task_type="CAUSAL_LM")
    adapter = save_adapter(tmp_path, items, config=config, base=base, tie_word_embeddings=True)
    monkeypatch.setattr(Recommender, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match=rf"adapter changes {changed}, and .*base has one weight for its embedding"):
        main(["export", "--model", adapter, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_where_they_are_two_weights_an_adapter_may_change_them(items, tmp_path):
    config = LoraConfig(r=4, target_modules=["lm_head", "embed_tokens"], task_type="CAUSAL_LM")
    adapter = save_adapter(tmp_path, items, config=config, tie_word_embeddings=False)
    assert 0 < export(Recommender.from_pretrained(adapter), tmp_path / "out") < 1e-3
    check_export(adapter, tmp_path / "other", overwrite=False)


def test_no_such_model_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no such model"):
        main(["export", "--model", str(tmp_path / "no such model"), "--output_dir", str(tmp_path / "out")])


def test_a_prior_is_no_part_of_what_the_merge_moved(items, tmp_path):
    prior = {"prior": Prior.popularity({items["item"][0]: 9.0}), "prior_weight": 50.0}
    recommender = Recommender.from_pretrained(save_adapter(tmp_path, items), **prior)
    assert 0 < export(recommender, tmp_path / "out") < 1e-4
