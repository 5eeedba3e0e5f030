"""Recommendations by plain `transformers.generate`: its arguments for users, and the items in what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ..modeling.generation import left_padded
from ..modeling.limits import Limits
from .catalogue import Catalogue, PromptTries, TitleTrie
from .logits_processor import TitleTrieLogitsProcessor
from .recommendation import Recommendation
from .title_arrays import TitleArrays

if TYPE_CHECKING:
    from .recommender import Recommender

_NOTHING = -1e8  # generate gives this and less to places that no title was found for


@dataclass(frozen=True, eq=False)
class TitleInputs:
    """Prompts for `generate`, padded on the left, with what lets only titles come out behind them.

    Attributes:
        input_ids: Token ids, (prompts, length).
        attention_mask: 1 for tokens, 0 for padding, (prompts, length).
        padding: The token that pads.
        processor: Lets only titles come out.
        excluded: Rows of the items that must not come out, one entry per prompt.
        catalogue: The items.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    padding: int
    processor: TitleTrieLogitsProcessor
    excluded: Sequence[frozenset[int]]
    catalogue: Catalogue

    def arguments(self, num_beams: int = 1) -> dict[str, Any]:
        """Return the arguments of `generate`.

        Args:
            num_beams: Number of beams; all of them are returned. With 1 the search is greedy, for one item.
        """
        beams = {"num_return_sequences": num_beams, "length_penalty": 0.0, "early_stopping": "never"}
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "logits_processor": [self.processor],
            "eos_token_id": self.processor.titles.end_token,
            "pad_token_id": self.padding,
            "max_new_tokens": self.processor.titles.depth,
            "do_sample": False,
            "num_beams": num_beams,
            **(beams if num_beams > 1 else {}),
            "return_dict_in_generate": True,
            "output_scores": True,
        }

    def recommendations(self, output: Any) -> list[list[Recommendation]]:
        """Return the items of each prompt, from best to worst; their score is the log-prob of the title.

        Args:
            output: What `generate` returned.
        """
        generated = output.sequences[:, self.input_ids.shape[1] :]
        nodes = self.processor.nodes(generated).tolist()
        if getattr(output, "sequences_scores", None) is not None:
            scores = output.sequences_scores.tolist()
        else:
            steps = torch.stack(output.scores, dim=1)  # (prompts, length, vocabulary)
            chosen = steps.gather(-1, generated[..., None].to(steps.device)).squeeze(-1)
            # Behind the end there is padding, whose score is none
            scores = chosen.masked_fill(chosen <= torch.finfo(chosen.dtype).min, 0.0).sum(-1).tolist()
        each = len(nodes) // len(self.excluded)
        found = []
        for prompt, excluded in enumerate(self.excluded):
            own: dict[int, float] = {}
            for node, score in list(zip(nodes, scores, strict=True))[prompt * each : (prompt + 1) * each]:
                if score > _NOTHING:
                    rows = self.processor.titles.rows_at(node).tolist()
                    own |= {row: score for row in rows if row not in excluded and row not in own}
            best = sorted(own, key=lambda row: (-own[row], row))
            names = self.catalogue
            found.append([Recommendation(names.items[row], names.titles[row], own[row]) for row in best])
        return found


class TitleGeneration:
    """Makes the arguments with which plain `transformers.generate` recommends titles of a catalogue.

    For those who run `generate` anyway, with its caches and its compilation. [`Recommender.recommend`] finds the same
    items and computes every user's prompt once for all beams.

    Of titles that end at the same step `generate` keeps those that are among its `num_beams` best beginnings; a title
    that ends outside them is lost, which `Recommender.recommend` would have found.

    What a model's generation config sets beside the end (a repetition penalty, tokens that must not come) applies here
    too: clear it with `model.generation_config = GenerationConfig()`.

    Args:
        recommender: Its model's limits, tokenizer, catalogue and template are used.

    Example:
        A tiny untrained model that recommends a film:

        >>> import polars as pl
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from dmpo_trl.data import MOVIES
        >>> from dmpo_trl.recommend import Recommender
        >>> words = Tokenizer(models.WordLevel({"</s>": 0, "?": 1, "Alien": 2, "Aliens": 3, "Heidi": 4}, "?"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="?")
        >>> config = LlamaConfig(vocab_size=5, hidden_size=8, intermediate_size=8, num_attention_heads=1)
        >>> items = pl.DataFrame({"item": ["1", "2", "3"], "title": ["Alien", "Aliens", "Heidi"]})
        >>> recommender = Recommender(LlamaForCausalLM(config), tokenizer, items, MOVIES.plain())
        >>> inputs = TitleGeneration(recommender).inputs([["Alien"], ["Heidi"]])
        >>> output = recommender.model.generate(**inputs.arguments(num_beams=2))
        >>> [sorted(one.title for one in user) for user in inputs.recommendations(output)]
        [['Aliens', 'Heidi'], ['Alien', 'Aliens']]
    """

    def __init__(self, recommender: Recommender) -> None:
        self._recommender = recommender
        titles = recommender.catalogue.titles
        self._tries = PromptTries(recommender.tokenizer, titles, recommender.template)
        self._arrays = lru_cache(maxsize=2)(self._arrays_of)

    def titles(self, history: Sequence[str] = ()) -> TitleArrays:
        """Return the titles as they continue the prompt of a history: in general the same for all.

        Args:
            history: Items from old to new.
        """
        _, trie, _ = self._prompt(history)
        return self._arrays(trie)

    def inputs(
        self, histories: Sequence[Sequence[str]], exclude: Sequence[Iterable[str]] | None = None
    ) -> TitleInputs:
        """Return the prompts of users, on the model's device.

        Args:
            histories: Items of each user, from old to new. They, and their titles, do not come out.
            exclude: Further items that must not come out, one entry per user.

        Raises:
            ValueError: There are no histories, an entry is not in the catalogue, the template lists candidates in the
                prompt, nothing is left for a user, the model has no embedding for a token or for a prompt's length, or
                the titles become other tokens after one prompt than after another.
        """
        names, model = self._recommender.catalogue, self._recommender.model
        if not histories:
            raise ValueError("histories: the list is empty; there is nobody to recommend to.")
        if exclude is not None and len(exclude) != len(histories):
            raise ValueError(f"exclude: {len(histories)} histories need one entry each, there are {len(exclude)}.")
        prompts, tries, seen = zip(*map(self._prompt, histories), strict=True)
        if len(set(tries)) > 1:
            raise ValueError("The titles become other tokens after one prompt than after another: give one at a time.")
        further = exclude or [()] * len(histories)
        excluded = [
            frozenset(names.of_same_title([*rows, *names.rows(own, "exclude")]))
            for rows, own in zip(seen, further, strict=True)
        ]
        device = model.get_input_embeddings().weight.device
        padding = Limits.of(model).padding(self._recommender.tokenizer)
        ids, mask = left_padded(prompts, padding)
        return TitleInputs(
            ids.to(device),
            mask.to(device),
            padding,
            TitleTrieLogitsProcessor(self._arrays(tries[0]), ids.size(1), excluded),
            excluded,
            names,
        )

    def _prompt(self, history: Sequence[str]) -> tuple[list[int], TitleTrie, list[int]]:
        """Return the token ids of a prompt, the trie behind it, and the rows of the history."""
        names, template = self._recommender.catalogue, self._recommender.template
        if template.candidates is not None:
            raise ValueError("The template lists candidates in the prompt, so it cannot recommend from the catalogue.")
        rows = names.rows(history, "history")
        prompt, trie = self._tries(template.prompt([names.titles[row] for row in rows]))
        Limits.of(self._recommender.model).check("history", prompt, [[int(trie.token.max())] * trie.depth])
        return list(prompt), trie, rows

    def _arrays_of(self, trie: TitleTrie) -> TitleArrays:
        return TitleArrays.of(trie, self._recommender.tokenizer.all_special_ids)
