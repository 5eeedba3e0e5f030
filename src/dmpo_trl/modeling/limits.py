"""Limits of a model: the tokens and positions that it has embeddings for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from .loading import base_model_of


@dataclass(frozen=True)
class Limits:
    """What a model has embeddings for; torch reports what is beyond as an index out of range.

    Attributes:
        tokens: Token ids below this are known.
        positions: Number of learned positions; infinite where positions are computed.

    Example:
        >>> Limits(tokens=100, positions=8).check("user 'u1'", [5, 6], [[7, 2]])
        >>> Limits(tokens=100, positions=8).check("user 'u1'", [5] * 8, [[7, 2]])
        Traceback (most recent call last):
        ...
        ValueError: user 'u1': the prompt has 8 tokens, with a completion 10, and the model has 8 positions. ...
    """

    tokens: float
    positions: float

    @classmethod
    def of(cls, model: Any) -> Limits:
        """Return the limits of a model.

        Args:
            model: A transformers model, or a wrapper around one.
        """
        base_model = base_model_of(model)
        tokens = getattr(base_model.get_input_embeddings(), "num_embeddings", math.inf)
        return cls(tokens, _learned_positions(base_model))

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Return whether a text can be beyond them at all; most models compute positions and know every token.

        Args:
            tokenizer: The model's.
        """
        return self.positions < math.inf or len(tokenizer) > self.tokens

    def first_unknown(self, ids: Sequence[int]) -> int | None:
        """Return the first token id that the model has no embedding for; None where it knows all.

        Args:
            ids: Token ids.
        """
        return None if max(ids, default=-1) < self.tokens else next(token for token in ids if token >= self.tokens)

    def exceeded_by(self, length: Any) -> Any:
        """Return whether sequences are too long. The last token is predicted, and predicts nothing.

        Args:
            length: Number of tokens of a sequence, or an array of them.
        """
        return length - 1 > self.positions

    def check(self, what: str, prompt: Sequence[int], completions: Iterable[Sequence[int]]) -> None:
        """Refuse a prompt that the model cannot take with each of its completions.

        Args:
            what: Whose prompt it is, for the message.
            prompt: Token ids of the prompt.
            completions: Token ids of each completion.

        Raises:
            ValueError: A token has no embedding, or the prompt with its longest completion has too many tokens.
        """
        completions = list(completions)
        self.check_tokens(what, prompt, *completions)
        self.check_length(what, len(prompt), max(map(len, completions), default=0))

    def check_tokens(self, what: str, *sequences: Sequence[int]) -> None:
        """Refuse token ids that the model has no embedding for.

        Args:
            what: Whose tokens they are, for the message.
            *sequences: Token ids.

        Raises:
            ValueError: A token has no embedding.
        """
        for ids in sequences:
            if (token := self.first_unknown(ids)) is not None:
                raise ValueError(
                    f"{what}: {self.unknown(token)}. Use the model's own tokenizer, or the model that belongs to this "
                    "one."
                )

    def check_length(self, what: str, prompt: int, completion: int) -> None:
        """Refuse a prompt that with its longest completion has more tokens than the model has positions.

        Args:
            what: Whose prompt it is, for the message.
            prompt: Number of tokens of the prompt.
            completion: Number of tokens of the longest completion.

        Raises:
            ValueError: There are too many tokens.
        """
        if self.exceeded_by(prompt + completion):
            raise ValueError(
                f"{what}: the prompt has {prompt} tokens, with a completion {prompt + completion}, and the model has "
                f"{self.positions} positions. Give a shorter history (`history_length` when the data are prepared), "
                "or use a model with more positions."
            )

    def padding(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return a token id to pad with: the tokenizer's, or another where the model has no embedding for it.

        Padding is masked, so which token it is does not matter.

        Args:
            tokenizer: The model's.
        """
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return padding if padding is not None and padding < self.tokens else 0

    def unknown(self, token: int, model: str = "model") -> str:
        """Return what is wrong with a token that the model has no embedding for.

        Args:
            token: The token id.
            model: What the model is called.
        """
        return f"token {token} is unknown to the {model}, which has embeddings for {self.tokens} tokens"


def _learned_positions(model: Any) -> int | float:
    """Return the number of positions that have an embedding; infinite where the model computes them."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = {
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings()
    }
    # OPT's table begins with two rows for padding
    return positions if positions and tables & {positions, positions + 2} else math.inf
