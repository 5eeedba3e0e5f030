import functools
import logging
import math

import numpy as np
import pytest
import support
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from support import TEXT_SIZES, make_tokenizer
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from trl import DPOConfig, DPOTrainer

from dmpo_trl import DMPOTrainer
from dmpo_trl.batching.completions import Completions
from dmpo_trl.batching.vision import DataCollatorForVisionMultiPreference

WORDS = ["Alien", "Babe", "Heidi", "Toy Story", "The Matrix", "The Mask II", "The Rock", "Star Wars"]
RAGGED = (1, 4, 2)

_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_VISION_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def _tokenizer(**image_tokens):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer().backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=image_tokens,
    )
    tokenizer.add_tokens(list(image_tokens.values()), special_tokens=True)
    return tokenizer


def _llava():
    tokenizer = _tokenizer(image_token="<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION_SIZES),
        text_config=LlamaConfig(**TEXT_SIZES),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE.replace("IMAGE", "<image>"),
    )
    return LlavaForConditionalGeneration, config, processor, "<image>"


def _gemma3():
    """Its image tokens see each other, and it learns which they are from `token_type_ids`."""
    tokenizer = _tokenizer(boi_token="<boi>", image_token="<img>", eoi_token="<eoi>")
    config = Gemma3Config(
        text_config=TEXT_SIZES | {"head_dim": 8, "sliding_window": 8},
        vision_config=_VISION_SIZES,
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 8, "width": 8}),
        tokenizer,
        image_seq_length=4,
        chat_template=_TEMPLATE.replace("IMAGE", "<boi>"),
    )
    return Gemma3ForConditionalGeneration, config, processor, "<boi>"


ARCHITECTURES = {"llava": _llava, "gemma3": _gemma3}


@functools.cache
def _built(name):
    return ARCHITECTURES[name]()


def save_model(folder, name):
    model_class, config, processor, _ = _built(name)
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():  # strong enough for the image to matter
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def make_rows(counts, image_mark, *, conversational, rejected_as_list=True):
    generator = np.random.default_rng(0)
    rows = []
    for index, count in enumerate(counts):
        size = (8, 8 + 8 * (index % 2), 3)
        titles = [" " + WORDS[(index + i) % len(WORDS)] for i in range(count + 1)]
        prompt = "Looked at " + ", ".join(WORDS[: 1 + index]) + ". Next:"
        if conversational:
            prompt = [{"role": "user", "content": prompt}]
            titles = [[{"role": "assistant", "content": title}] for title in titles]
        else:
            prompt = f"{image_mark}{prompt}"
        rows.append(
            {
                "images": [Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8))],
                "prompt": prompt,
                "chosen": titles[0],
                "rejected": titles[1:] if rejected_as_list else titles[1],
            }
        )
    return Dataset.from_list(rows)


make_config = functools.partial(support.make_config, per_device_train_batch_size=3, gradient_checkpointing=False)


def loss_gradients_and_metrics(trainer):
    return support.loss_gradients_and_metrics(trainer, next(iter(trainer.get_eval_dataloader())))


def assert_gradients_agree(found, expected):
    assert found.keys() == expected.keys()
    assert any("vision" in name or "visual" in name for name in expected), "the image should matter"
    # Some gradients are zero but for rounding: attention does not see the bias of its keys
    floor = 1e-3 * max(gradient.norm() for gradient in expected.values())
    for name in expected:
        error = (found[name] - expected[name]).norm() / (expected[name].norm() + floor)
        assert error <= 1e-4, f"{name}: relative error {error:.2g}"


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_negative_is_dpo(tmp_path, name, conversational):
    folder = save_model(tmp_path / "model", name)
    pairs, lists = (
        make_rows((1, 1, 1), _built(name)[3], conversational=conversational, rejected_as_list=as_list)
        for as_list in (False, True)
    )
    theirs = loss_gradients_and_metrics(
        DPOTrainer(folder, args=make_config(tmp_path, DPOConfig), train_dataset=pairs, eval_dataset=pairs)
    )
    assert abs(theirs[0] - math.log(2)) > 1e-2
    for rows in (pairs, lists):
        trainer = DMPOTrainer(folder, args=make_config(tmp_path), train_dataset=rows, eval_dataset=rows)
        ours = loss_gradients_and_metrics(trainer)
        assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
        assert_gradients_agree(ours[1], theirs[1])
        for metric, value in theirs[2].items():
            assert ours[2][metric] == pytest.approx(value, abs=1e-4), metric


def naive_logp(model, processor, image, prompt, completion):
    """Log-prob of a completion from the definition: one image, one sequence, the model's own logits."""
    inputs = processor(images=[[image]], text=[prompt], return_tensors="pt", add_special_tokens=False)
    ids = torch.tensor([processor.tokenizer(completion, add_special_tokens=False)["input_ids"]])
    length = inputs["input_ids"].size(1)
    for name, values in {"input_ids": ids, "attention_mask": ids.ne(-1).long(), "token_type_ids": 0 * ids}.items():
        if name in inputs:
            inputs[name] = torch.cat((inputs[name], values), dim=1)
    logps = model(**inputs, use_cache=False).logits[0].log_softmax(-1)
    return sum(logps[length + i - 1, token] for i, token in enumerate(ids[0]))


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_many_negatives_are_the_formula(tmp_path, name, conversational):
    """-log sigmoid(beta * (s+ - mean_i s_i)), one sequence at a time."""
    model_class, _, processor, image_mark = _built(name)
    folder = save_model(tmp_path / "model", name)
    rows = make_rows(RAGGED, image_mark, conversational=conversational)
    trainer = DMPOTrainer(folder, args=make_config(tmp_path), train_dataset=rows, eval_dataset=rows)
    loss, gradients, metrics = loss_gradients_and_metrics(trainer)

    trainer.model.zero_grad()
    reference = model_class.from_pretrained(folder).eval()
    losses, margins = [], []
    for row in rows:
        prompt, completions = row["prompt"], [row["chosen"], *row["rejected"]]
        if conversational:
            prompt = f"<|user|>{image_mark}{prompt[0]['content']}</s><|assistant|>"
            completions = [f"{completion[0]['content']}</s>" for completion in completions]
        scores = []
        for completion in completions:
            text = (processor, row["images"][0], prompt, completion)
            with torch.no_grad():
                reference_logp = naive_logp(reference, *text)
            scores.append(naive_logp(trainer.model, *text) - reference_logp)
        chosen, *rejected = scores
        margin = 0.5 * (chosen - sum(rejected) / len(rejected))
        losses.append(-torch.nn.functional.logsigmoid(margin))
        margins.append(margin.item())
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss - math.log(2)) > 1e-2
    assert_gradients_agree(
        gradients, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    )
    assert metrics["rewards/margins"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)


@pytest.mark.parametrize("conversational", [False, True])
def test_several_chosen_completions_are_those_of_rows_with_one(tmp_path, conversational):
    """DMPO's loss of a row is the mean over its chosen completions, each with all rejected ones."""
    folder = save_model(tmp_path / "model", "llava")
    rows = list(make_rows((3, 4), "<image>", conversational=conversational))
    for row in rows:
        row |= {"chosen": [row["chosen"], row["rejected"][0]], "rejected": row["rejected"][1:]}
    several = Dataset.from_list(rows)
    single = Dataset.from_list([row | {"chosen": one} for row in rows for one in row["chosen"]])
    outcomes = [
        loss_gradients_and_metrics(
            DMPOTrainer(folder, args=make_config(tmp_path), train_dataset=one, eval_dataset=one)
        )
        for one in (several, single.select([0, 1]), single.select([2, 3]))
    ]
    assert outcomes[0][0] == pytest.approx((outcomes[1][0] + outcomes[2][0]) / 2, abs=1e-5)
    assert_gradients_agree(
        outcomes[0][1], {name: (outcomes[1][1][name] + outcomes[2][1][name]) / 2 for name in outcomes[1][1]}
    )
    assert outcomes[0][2]["num_rejected"] == 2.5


@pytest.mark.parametrize("lora", [False, True])
def test_training_with_images_lowers_the_loss(tmp_path, lora):
    rows = make_rows((2, 1, 3, 2), "<image>", conversational=True)
    single = rows.map(lambda row: {"image": row["images"][0]}, remove_columns="images")
    trainer = DMPOTrainer(
        save_model(tmp_path / "model", "llava"),
        args=make_config(tmp_path, num_train_epochs=6, per_device_train_batch_size=2, gradient_checkpointing=True),
        train_dataset=single,
        eval_dataset={"map": rows, "stream": rows.to_iterable_dataset()},
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_map_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert after["eval_map_loss"] < before["eval_map_loss"] - 0.05
    assert after["eval_stream_loss"] == pytest.approx(after["eval_map_loss"], abs=1e-5)


def test_rows_without_an_image_beside_rows_with_one(tmp_path):
    rows = list(make_rows((2, 1, 3), "<image>", conversational=True))
    rows[1]["images"] = []
    collator = DataCollatorForVisionMultiPreference(_built("llava")[2])
    batch = collator(rows)
    assert batch["num_rejected"].tolist() == [2, 1, 3]
    assert batch["chosen"].tolist() == [0, 3, 5]
    assert len(batch["input_ids"]) == 9
    assert len(batch["pixel_values"]) == 7  # one image for each completion of the first and the last row
    assert "pixel_values" not in collator([rows[1]])


def test_the_completions_of_a_row_are_scored_and_nothing_else():
    processor = _built("llava")[2]
    batch = DataCollatorForVisionMultiPreference(processor)(list(make_rows(RAGGED, "<image>", conversational=True)))
    found = [[] for _ in range(len(Completions.of(batch)))]
    for pair, completion in zip(batch["token_pairs"], batch["token_completions"], strict=True):
        row, column = batch["scored_rows"][pair], batch["scored_columns"][pair]
        assert batch["input_ids"][row, column + 1] == batch["scored_targets"][pair]
        found[completion].append(batch["scored_targets"][pair])
    expected = [
        f" {WORDS[(index + place) % len(WORDS)]}</s>" for index, n in enumerate(RAGGED) for place in range(n + 1)
    ]
    assert [processor.tokenizer.decode(ids) for ids in found] == expected


def test_what_exceeds_max_length_is_cut_with_a_warning(caplog):
    processor = _built("llava")[2]
    rows = list(make_rows(RAGGED, "<image>", conversational=True))
    whole = DataCollatorForVisionMultiPreference(processor)(rows)
    lengths = whole["attention_mask"].sum(dim=1)
    limit = int(lengths.max()) - 1
    with caplog.at_level(logging.WARNING):
        cut = DataCollatorForVisionMultiPreference(processor, max_length=limit)(rows)
    assert cut["input_ids"].size(1) == limit
    assert len(cut["scored_targets"]) == len(whole["scored_targets"]) - int((lengths > limit).sum())
    assert f"{int((lengths > limit).sum())} of the 10 completions" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix_sharing": True}, "prefixes that hold images are not shared"),
        ({"truncation_mode": "keep_completion"}, "it would cut image tokens"),
        ({"pad_to_multiple_of": 8}, "`pad_to_multiple_of` is not supported where rows have images"),
        ({"precompute_ref_log_probs": True}, "not supported for vision datasets"),
    ],
    ids=str,
)
def test_options_that_images_do_not_allow_are_refused(tmp_path, options, message):
    rows = make_rows((2, 1), "<image>", conversational=True)
    with pytest.raises(ValueError, match=message):
        DMPOTrainer(save_model(tmp_path / "model", "llava"), args=make_config(tmp_path, **options), train_dataset=rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"rejected": []}, "Row 1 of the train dataset, column `rejected`: the list is empty"),
        (lambda row: row | {"rejected": [""]}, "Row 1 of the train dataset, column `rejected`: a completion is empty"),
        (lambda row: {k: v for k, v in row.items() if k != "prompt"}, "column `prompt`"),
        (lambda row: row | {"rejected1": " Fargo"}, r"\['rejected1'\] of the train dataset are not folded"),
    ],
)
def test_bad_rows_stop_the_trainer_before_the_first_step(tmp_path, change, message):
    good, bad = make_rows((2, 1), "<image>", conversational=False).to_list()
    bad = change(bad)
    good = {column: good.get(column, value) for column, value in bad.items()}
    with pytest.raises(ValueError, match=message):
        DMPOTrainer(
            save_model(tmp_path / "model", "llava"),
            args=make_config(tmp_path),
            train_dataset=Dataset.from_list([good, bad]),
        )


def test_that_prefixes_are_not_shared_is_logged(tmp_path, caplog):
    rows = make_rows((2, 1), "<image>", conversational=True)
    with caplog.at_level(logging.WARNING):
        DMPOTrainer(save_model(tmp_path / "model", "llava"), args=make_config(tmp_path), train_dataset=rows)
    assert "Prefix sharing is off: every completion gets a copy of its prompt and of its images" in caplog.text
