"""Collation of preference examples with images: every completion gets a copy of its prompt and of its images."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import ProcessorMixin
from transformers.data.data_collator import DataCollatorMixin
from transformers.utils import logging
from trl import DPOConfig
from trl.data_utils import apply_chat_template, prepare_multimodal_messages
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl.trainer.utils import flush_left

from ..config import option
from ..preprocessing.format import VALUE_COLUMNS, RowError, numbered_columns, read_row
from .completions import Completions

logger = logging.get_logger(__name__)

# What processors return token by token; everything else describes images
_PER_TOKEN = ("attention_mask", "input_ids", "token_type_ids", "mm_token_type_ids")


def vision_collator(
    collator: DataCollatorForVisionPreference, datasets: dict[str, Dataset | IterableDataset | None], args: DPOConfig
) -> "DataCollatorForVisionMultiPreference":
    """Take TRL's collator's place for rows with images, after checking options and rows.

    Args:
        collator: TRL's.
        datasets: All that will be collated, by their names for messages. No image of theirs is decoded; the rows of a
            stream are checked when they come.
        args: The trainer's.

    Raises:
        ValueError: An option that images do not allow, or rejected completions in numbered columns.
        RowError: A row breaks the data contract.
    """
    if args.truncation_mode == "keep_completion":
        raise ValueError(
            "`truncation_mode='keep_completion'` shortens prompts, and where rows have images it would cut image "
            "tokens. Use 'keep_start', or `max_length=None`."
        )
    if collator.pad_to_multiple_of is not None:
        raise ValueError("`pad_to_multiple_of` is not supported where rows have images, as in TRL: leave it out.")
    mode = option(args, "prefix_sharing")
    if mode is True:
        raise ValueError(
            "`prefix_sharing=True`, but prefixes that hold images are not shared. Set it to 'auto' or False to train "
            "on copies of prompt and images."
        )
    if mode == "auto":
        logger.warning("Prefix sharing is off: every completion gets a copy of its prompt and of its images.")
    for name, dataset in datasets.items():
        if dataset is not None:
            _check_rows(dataset, name)
    return DataCollatorForVisionMultiPreference(collator.processor, collator.max_length)


def _check_rows(dataset: Dataset | IterableDataset, dataset_name: str) -> None:
    columns = set(next(iter(dataset)))
    if numbered := numbered_columns(columns):
        raise ValueError(
            f"The columns {numbered} of the {dataset_name} dataset are not folded into `rejected` where rows have "
            "images: put their entries into one list in a column `rejected`."
        )
    if values := sorted(columns & set(VALUE_COLUMNS)):
        raise ValueError(
            f"The columns {values} of the {dataset_name} dataset are not used where rows have images: remove them."
        )
    if isinstance(dataset, Dataset):
        for index, row in enumerate(dataset.select_columns(sorted(columns - {"image", "images"}))):
            _read(row, partial(RowError, dataset_name, index))


def _read(row: dict[str, Any], error: Any) -> tuple[Any, list[Any], int]:
    """Return the prompt of a row, its completions, the chosen ones first, and the number of chosen ones."""
    if "prompt" not in row:
        raise error("prompt", "there is no such column", "Rows with images need their prompt in a column of its own")
    prompt, chosen, rejected = read_row(row, error)
    for column, completions in (("chosen", chosen), ("rejected", rejected)):
        if "" in completions:
            raise error(column, "a completion is empty", "Give it text, or drop the row")
    return prompt, [*chosen, *rejected], len(chosen)


def _collation_error(column: str, problem: str, remedy: str) -> ValueError:
    return ValueError(f"A row with images, column `{column}`: {problem}. {remedy}.")


@dataclass
class DataCollatorForVisionMultiPreference(DataCollatorMixin):
    """Collate preference examples with images and any number of chosen and rejected completions each.

    Examples are those of TRL's `DataCollatorForVisionPreference`, except that `chosen` and `rejected` may hold lists:
    `prompt`, `chosen`, `rejected` (text, or messages) and `images` (a list) or `image`. Texts are tokenised and images
    turned into pixels when the batch is made, as there. A row of the batch is one completion behind a copy of its
    prompt and images, example by example, the chosen ones first; the batch holds what the processor returns, and what
    `DataCollatorForMultiPreference` tells the trainer of the completions.

    Args:
        processor: Its tokenizer needs a padding token.
        max_length: Longest sequence (prompt with image tokens, and completion), in tokens; what exceeds it is cut
            at the end, with a warning. None for no limit.

    Example:
        >>> collator = DataCollatorForVisionMultiPreference(processor, max_length=1024)  # doctest: +SKIP
        >>> row = {"images": [poster], "prompt": messages, "chosen": one, "rejected": [two, three]}  # doctest: +SKIP
        >>> collator([row])["num_rejected"]  # doctest: +SKIP
        tensor([2])
    """

    processor: ProcessorMixin
    max_length: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate `examples`; see the class."""
        prompts: list[str] = []
        images: list[list[Any]] = []
        completions: list[str] = []
        num_completions: list[int] = []
        num_chosen: list[int] = []
        for example in examples:
            own_images = [example["image"]] if "image" in example else example["images"] or []
            prompt, options, chosen = self._render(example, own_images)
            prompts += [prompt] * len(options)
            images += [own_images] * len(options)
            completions += options
            num_completions.append(len(options))
            num_chosen.append(chosen)
        # Processors take None for a batch without any image, and no list of empty lists
        inputs = self._process(prompts, "left", images=images if any(images) else None)
        tokens, is_completion = self._join(inputs, self._process(completions, "right"))
        rows, columns = is_completion[:, 1:].nonzero(as_tuple=True)
        of_each = torch.tensor([num_chosen, num_completions])
        return {
            **vars(Completions.make(of_each[0], of_each[1] - of_each[0], torch.arange(len(rows)), rows)),
            **inputs,
            **tokens,
            "scored_rows": rows,
            "scored_columns": columns - is_completion.size(1),  # from the end, as `lay_out` counts
            "scored_targets": tokens["input_ids"][rows, columns + 1],
        }

    def _render(self, example: dict[str, Any], images: list[Any]) -> tuple[str, list[str], int]:
        """Return the texts of an example's prompt and of its completions, and the number of chosen ones."""
        prompt, completions, num_chosen = _read(example, _collation_error)
        if isinstance(prompt, str):
            return prompt, completions, num_chosen
        tools = example.get("tools")
        messages = prepare_multimodal_messages(prompt, images=images)
        texts = [
            apply_chat_template(
                {"prompt": messages, "completion": prepare_multimodal_messages(completion)},
                self.processor,
                tools=json.loads(tools) if isinstance(tools, str) else tools,
                **example.get("chat_template_kwargs") or {},
            )
            for completion in completions
        ]
        # A template may render a prompt's end in another way before some completion: the prompt is what all share
        prompt = min((text["prompt"] for text in texts), key=len)
        return prompt, [(text["prompt"] + text["completion"])[len(prompt) :] for text in texts], num_chosen

    def _process(self, texts: list[str], padding_side: str, **images: Any) -> dict[str, torch.Tensor]:
        return dict(
            self.processor(
                text=texts,
                padding=True,
                padding_side=padding_side,
                return_tensors=self.return_tensors,
                add_special_tokens=False,  # templates write them out
                **images,
            )
        )

    def _join(
        self, prompts: dict[str, torch.Tensor], completions: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Put completions behind their prompts: what is token by token, and which tokens are a completion's."""
        names = [name for name in _PER_TOKEN if name in prompts]
        nothing = torch.zeros_like(completions["input_ids"])
        attention_mask, *others = (torch.cat((prompts[name], completions.get(name, nothing)), dim=1) for name in names)
        is_completion = torch.cat((torch.zeros_like(prompts["attention_mask"]), completions["attention_mask"]), dim=1)
        attention_mask, is_completion, *others = flush_left(attention_mask, is_completion, *others)
        if self.max_length is not None and attention_mask.size(1) > self.max_length:
            cut = int((is_completion[:, self.max_length :].sum(dim=1) > 0).sum())
            logger.warning_once(
                f"{cut} of the {len(is_completion)} completions of a batch with images are cut at the end: with their "
                f"prompts they exceed max_length={self.max_length}. Raise `max_length`, or set it to None. This "
                "warning is shown once."
            )
        values = [value[:, : self.max_length] for value in (attention_mask, *others)]
        return dict(zip(names, values, strict=True)), is_completion[:, : self.max_length]
