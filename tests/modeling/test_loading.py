"""A model and what lies beside it come from the same place and the same revision."""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import make_model, make_tokenizer
from support.models import save_model
from transformers import AutoModelForCausalLM

from dmpo_trl.evaluation.report import load_for_ranking
from dmpo_trl.modeling import loading
from dmpo_trl.modeling.loading import (
    cast_adapter,
    check_found,
    load_model,
    load_model_and_tokenizer,
    load_tokenizer,
)
from dmpo_trl.recommend import Recommender

WHERE = {
    "revision": "v2",
    "token": "secret",
    "cache_dir": "/cache",
    "subfolder": "sub",
    "local_files_only": True,
}
OPTIONS = WHERE | {"trust_remote_code": True, "dtype": "bfloat16", "device_map": "cpu"}


@pytest.fixture
def calls(monkeypatch):
    """What `from_pretrained` of each class was asked for; no repository has a tokenizer but `base`."""
    calls = []

    class Loaded(torch.nn.Module):
        base_model_name_or_path, revision = "base", "of-base"

    def record(name):
        def from_pretrained(path, **kwargs):
            calls.append((name, path, kwargs))
            if name == "tokenizer" and path == "adapter":
                raise OSError("no tokenizer")
            if kwargs.pop("output_loading_info", False):
                return Loaded(), {"missing_keys": set()}
            return Loaded()

        return from_pretrained

    for name, cls in (
        ("model", loading.AutoModelForCausalLM),
        ("adapter", loading.AutoPeftModelForCausalLM),
        ("config", loading.PeftConfig),
        ("tokenizer", loading.AutoTokenizer),
    ):
        monkeypatch.setattr(cls, "from_pretrained", record(name))

    def find(path, **kwargs):
        calls.append(("is adapter", path, kwargs))
        return "adapter_config.json" if path == "adapter" else None

    monkeypatch.setattr(loading, "find_adapter_config_file", find)
    return calls


@pytest.mark.parametrize("load", [load_model_and_tokenizer, load_for_ranking])
def test_a_tokenizer_shares_its_models_options(load, calls):
    load("model", **OPTIONS)
    tokenizer_options = WHERE | {"trust_remote_code": True}
    assert calls == [
        ("is adapter", "model", WHERE),
        ("model", "model", OPTIONS),
        ("tokenizer", "model", tokenizer_options),
    ]


def test_an_adapters_tokenizer_is_its_base_models_in_the_base_models_revision(calls):
    load_model_and_tokenizer("adapter", **OPTIONS)
    of_base = {name: OPTIONS[name] for name in ("token", "cache_dir", "local_files_only", "trust_remote_code")}
    assert calls[:2] == [("is adapter", "adapter", WHERE), ("adapter", "adapter", OPTIONS)]
    assert calls[-2:] == [("config", "adapter", WHERE), ("tokenizer", "base", of_base | {"revision": "of-base"})]


def test_a_recommender_passes_them_on_too(calls, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "dmpo_trl.recommend._saved.cached_file", lambda path, name, **kwargs: asked.append((path, kwargs))
    )
    with pytest.raises(ValueError, match=r"holds no recommender\.json"):
        Recommender.from_pretrained("model", **OPTIONS)
    for path, kwargs in asked:
        assert (path, WHERE) == ("model", {name: kwargs[name] for name in WHERE})
    assert len(asked) == 2


def test_whatever_is_wrong_with_a_models_own_tokenizer_is_raised(calls, monkeypatch):
    monkeypatch.setattr(loading, "find_adapter_config_file", lambda path, **kwargs: None)
    with pytest.raises(OSError, match="The tokenizer of adapter cannot be loaded: no tokenizer"):
        load_tokenizer("adapter")


def test_an_adapter_in_a_subfolder_without_a_tokenizer(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_model().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    model = make_model().from_pretrained(base)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(adapter / "sub")
    assert json.loads((adapter / "sub" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert load_tokenizer(str(adapter), subfolder="sub").get_vocab() == make_tokenizer().get_vocab()


def without(folder, part):
    """Take the weights of a layer out of a saved file."""
    (file,) = folder.glob("*.safetensors")
    save_file({name: value for name, value in load_file(file).items() if part not in name}, file, {"format": "pt"})


def test_whether_a_model_can_be_found_is_known_before_it_is_loaded(tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    model = make_model().from_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    for name in ("base", "adapter"):
        check_found(str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    for name in ("nosuch", "empty"):
        with pytest.raises(ValueError, match=f"The model {tmp_path / name} cannot be loaded: "):
            check_found(str(tmp_path / name))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=f"The model {tmp_path / 'adapter'} cannot be loaded: .*{tmp_path / 'base'}"):
        check_found(str(tmp_path / "adapter"))


@pytest.mark.parametrize("adapter", [False, True])
def test_a_file_of_weights_that_is_cut_off_is_refused_with_the_models_name(tmp_path, adapter):
    model = make_model()
    if adapter:
        model.save_pretrained(tmp_path / "base")
        model = get_peft_model(type(model).from_pretrained(tmp_path / "base"), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"A file of weights of {tmp_path / 'model'}, .* is damaged .*anew\."):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_without_all_its_weights_is_refused(tmp_path, tied):
    """It would be half random, and its figures no figures."""
    make_model(tie_word_embeddings=tied).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).config.tie_word_embeddings is tied
    without(tmp_path, "layers.1.")
    with pytest.raises(
        ValueError, match=r"lacks 9 weights of LlamaForCausalLM.*model.layers.1.input_layernorm.weight"
    ):
        load_model(str(tmp_path))


def adapters_dtypes(model) -> set[torch.dtype]:
    return {weight.dtype for name, weight in model.named_parameters() if "default" in name}


LAYERS = ["q_proj", "down_proj"]


@pytest.mark.parametrize(
    ("adapter", "cast"),
    [
        (LoraConfig(target_modules=LAYERS, use_dora=True, task_type="CAUSAL_LM"), True),
        (LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"), True),
        (IA3Config(target_modules=LAYERS, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"), True),
        (VeraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"), False),  # has tensors that would not be cast
    ],
    ids=["dora", "embedding", "ia3", "vera"],
)
def test_an_adapter_that_ranks_has_the_models_type(tmp_path, adapter, cast):
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter)
    for name, weight in adapted.named_parameters():
        if "default" in name and "magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.1)
    path = str(tmp_path / "adapter")
    adapted.save_pretrained(path, save_embedding_layers=False)
    kept = load_model(path, dtype=torch.bfloat16)  # as `export` and `Recommender.save_pretrained` need it
    assert adapters_dtypes(kept) == {torch.float32}
    ranking, _ = load_for_ranking(path, dtype=torch.bfloat16)
    assert adapters_dtypes(ranking) == {torch.bfloat16 if cast else torch.float32}
    assert adapters_dtypes(cast_adapter(load_model(path))) == {torch.float32}

    ids = torch.arange(1, 9)[None]
    exact = load_model(path)(ids).logits
    for model in (kept, ranking):
        assert (model.eval()(ids).logits.float() - exact).norm() < 0.02 * exact.norm()


def test_an_adapter_of_a_layer_in_eight_bits_stays_as_it_is():
    """Whose type is a floating one, and which peft computes in another."""
    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "base_layer" in name:
            weight.data = weight.data.to(torch.float8_e4m3fn)
    assert adapters_dtypes(cast_adapter(model)) == {torch.float32}


def test_an_adapter_without_all_its_weights_is_refused(tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).save_pretrained(
        tmp_path / "adapter"
    )
    load_model(str(tmp_path / "adapter"))
    without(tmp_path / "adapter", "layers.1.")
    with pytest.raises(ValueError, match=r"adapter lacks weights.*layers.1.self_attn.q_proj.lora_A"):
        load_model(str(tmp_path / "adapter"))


class Code:
    """What a pickle can do beside holding tensors."""

    def __reduce__(self):
        return print, ("this runs when it is loaded",)


def test_a_pickle_with_more_than_tensors_is_refused_and_nothing_advises_to_load_it(tmp_path, capfd):
    make_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"weights of {tmp_path} are a pickle .* as safetensors\.") as refused:
        load_model(str(tmp_path))
    assert "weights_only" not in str(refused.value)
    assert "this runs" not in capfd.readouterr().out


def test_an_adapter_of_another_base_is_refused_with_what_does_not_fit(tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    model = get_peft_model(make_model(hidden_size=64), LoraConfig(task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=rf"weights of {tmp_path / 'adapter'} have other shapes .*size mismatch for"):
        load_model(str(tmp_path / "adapter"))


DEEP = "[" * 50_000


@pytest.mark.parametrize(
    ("name", "text", "load", "message"),
    [
        ("config.json", DEEP, load_model, "The model {} cannot be loaded: .*RecursionError"),
        ("config.json", '{"model_type": "llama", "hidden_size": "x"}', load_model, "The model {} .*'hidden_size'"),
        ("config.json", '{"model_type": "nope"}', load_model, "The model {} cannot be loaded: .*nope"),
        ("model.safetensors", "", load_model, "A file of weights of {}, .* is damaged"),
        ("tokenizer.json", "{}", load_tokenizer, "The tokenizer of {} cannot be loaded"),
        ("tokenizer.json", "{nope", load_tokenizer, "The tokenizer of {} cannot be loaded: .*line 1"),
        ("tokenizer_config.json", DEEP, load_tokenizer, "The tokenizer of {} cannot be loaded: .*RecursionError"),
    ],
)
def test_a_damaged_file_beside_the_weights_is_an_error_that_names_the_model(name, text, load, message, tmp_path):
    save_model(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="(?s)" + message.format(tmp_path)):
        load(str(tmp_path))
