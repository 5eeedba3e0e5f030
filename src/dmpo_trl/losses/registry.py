"""Registry of losses: what `loss_type` may name, and what the trainer must know of each.

A loss of your own is one function: `@multi_negative("name")` for one that returns one value per example,
`@pairwise("name")` for one that returns one value per pair, whose mean over the pairs of an example is then taken.

An example has one chosen completion, and a row with several is as many examples (`ScoredBatch`): the loss of such a
row is the mean over its chosen completions, each against all rejected ones.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from trl import DPOConfig

from .batch import ScoredBatch

Loss = Callable[[ScoredBatch, DPOConfig], torch.Tensor]


@dataclass(frozen=True)
class RegisteredLoss:
    """A loss, and what it needs.

    Attributes:
        function: Takes a batch and the trainer's arguments.
        pairwise: Whether it returns one value per pair, (P,), or one per example, (B,).
        reference: Whether it uses the reference's log-probs.
        score: Which score of a completion it trains: `"sum"` or `"mean"` of the log-probs of its tokens.
    """

    function: Loss
    pairwise: bool
    reference: bool
    score: str


LOSSES: dict[str, RegisteredLoss] = {}
_LOSS_OF_COLUMN = {"rejected_logq": "sampled_softmax", "chosen_levels": "mult_dpo"}
"""Columns, and the loss that uses each."""


def multi_negative(name: str, *, reference: bool = True, score: str = "sum") -> Callable[[Loss], Loss]:
    """Register a loss that returns one value per example, (B,), under `name`.

    Registering a name of your own again replaces the loss, as when the cell of a notebook is run again.

    Args:
        name: What `loss_type` calls it.
        reference: Whether it uses the reference's log-probs. Where no loss of a run does, no reference model is loaded
            or computed, and `ref_chosen_logps` and `ref_rejected_logps` are 0.
        score: Which score of a completion it trains, `"sum"` or `"mean"` of the log-probs of its tokens: what a model
            trained with it should rank by.

    Raises:
        ValueError: The name is that of a loss of the package, or of a pairwise one.

    Example:
        >>> @multi_negative("hardest")
        ... def hardest(batch, args):
        ...     return torch.nn.functional.softplus(-batch.min_over_rejected(batch.deltas))
        >>> DMPOConfig("out", loss_type=["hardest"])  # doctest: +SKIP
    """
    return lambda loss: _register(name, RegisteredLoss(loss, pairwise=False, reference=reference, score=score))


def pairwise(name: str, *, reference: bool = True, score: str = "sum") -> Callable[[Loss], Loss]:
    """Register a loss that returns one value per pair, (P,), under `name`.

    Registering a name of your own again replaces the loss, as when the cell of a notebook is run again.

    Args:
        name: What `loss_type` calls it.
        reference: See [`multi_negative`].
        score: See [`multi_negative`].

    Raises:
        ValueError: The name is that of a loss of the package, or of a multi-negative one.

    Example:
        >>> @pairwise("squared_hinge")
        ... def squared_hinge(batch, args):
        ...     return torch.relu(1 - batch.deltas) ** 2
    """
    return lambda loss: _register(name, RegisteredLoss(loss, pairwise=True, reference=reference, score=score))


def _register(name: str, loss: RegisteredLoss) -> Loss:
    previous = LOSSES.get(name)
    if loss.score not in ("sum", "mean"):
        raise ValueError(f"The score of the loss {name!r} must be 'sum' or 'mean', it is {loss.score!r}.")
    if previous is not None:
        other_kind = previous.pairwise != loss.pairwise
        if other_kind or (_is_ours(previous.function) and not _is_ours(loss.function)):
            raise ValueError(
                f"There is a loss {name!r} already, from {previous.function.__module__}, of "
                f"{'the other kind (pairwise or multi-negative)' if other_kind else 'the package'}: register yours "
                "under another name."
            )
    LOSSES[name] = loss
    return loss.function


def _is_ours(function: Loss) -> bool:
    return (function.__module__ or "").startswith(f"{__package__}.")  # code that was run as a text has no module


def registered(names: Iterable[str]) -> list[RegisteredLoss]:
    """Look up losses.

    Args:
        names: Of `loss_type`.

    Raises:
        ValueError: A name is not registered.

    Example:
        >>> from dmpo_trl.losses import registered
        >>> [loss.reference for loss in registered(["dmpo", "sft"])]
        [True, False]
    """
    if unknown := [name for name in names if name not in LOSSES]:
        raise ValueError(f"Unknown loss_type {unknown[0]!r}: choose among {sorted(LOSSES)}.")
    return [LOSSES[name] for name in names]


def trained_score(names: Iterable[str]) -> Literal["sum", "mean"]:
    """Return the score of a completion that losses train, and that a model trained with them should rank by.

    Args:
        names: Of `loss_type`.

    Returns:
        `"mean"` where all of them train the mean log-prob per token, else `"sum"`.

    Example:
        >>> trained_score(["dmpo", "sft"]), trained_score(["sigmoid_norm"])
        ('sum', 'mean')
    """
    return "mean" if {loss.score for loss in registered(names)} == {"mean"} else "sum"


def preference_loss(name: str, batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Compute the loss `name` of each row.

    Args:
        name: A registered loss.
        batch: Log-probs of the batch. A loss that is not made of pairs takes the mean of an example's `pair_weights`.
        args: Where the losses find `label_smoothing`, `discopop_tau` and every other option.

    Returns:
        (R,), the mean over the row's chosen completions; the loss of the batch is the mean over its rows, so that
        every row weighs the same, whatever its numbers of chosen and rejected completions.

    Raises:
        ValueError: `name` is not registered, or the loss returns another shape than it was registered with.

    Example:
        >>> one, two = torch.tensor([-1.0]), torch.tensor([-2.0, -4.0])
        >>> zeros, lengths = torch.zeros_like, torch.ones_like
        >>> batch = ScoredBatch(
        ...     one, two, zeros(one), zeros(two), torch.tensor([2]), lengths(one), lengths(two), torch.tensor(1.0)
        ... )
        >>> preference_loss("hinge", batch, args=None)  # beta is 0.1, the gaps are 1 and 3
        tensor([0.8000])
    """
    (loss,) = registered([name])
    values = loss.function(batch, args)
    expected = (batch.rejected_logps if loss.pairwise else batch.chosen_logps).shape
    if getattr(values, "shape", None) != expected:
        got = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else repr(values)
        raise ValueError(
            f"The loss {name!r} must return one value per {'pair' if loss.pairwise else 'example'}, "
            f"{tuple(expected)}, it returned {got}."
        )
    weights = batch.pair_weights
    if loss.pairwise:
        values = batch.mean_over_rejected(values if weights is None else values * weights)
    elif weights is not None:
        values = values * batch.mean_over_rejected(weights)
    return batch.mean_over_row(values)


def check_columns(names: Sequence[str], columns: Collection[str]) -> None:
    """Refuse columns of a dataset that no loss of a run uses. Losses of one's own may use any.

    Args:
        names: Registered losses.
        columns: Of a dataset.

    Raises:
        ValueError: A loss is not registered, or none uses the column `rejected_logq` or `chosen_levels`.

    Example:
        >>> check_columns(["dmpo"], ["prompt", "chosen", "chosen_levels"])
        Traceback (most recent call last):
        ValueError: The dataset has a column `chosen_levels`, and no loss of loss_type=['dmpo'] uses it. ...
    """
    all_ours = all(_is_ours(loss.function) for loss in registered(names))
    for column, user in _LOSS_OF_COLUMN.items():
        if all_ours and column in columns and user not in names:
            raise ValueError(
                f"The dataset has a column `{column}`, and no loss of loss_type={list(names)} uses it. Remove the "
                f"column, or choose {user!r}."
            )


def weighted_loss(names: Sequence[str], weights: Sequence[float], batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Compute the loss of a batch: the mean over its rows of the weighted sum of losses, a scalar.

    Args:
        names: Registered losses.
        weights: One for each loss.
        batch: Log-probs of the batch.
        args: See [`preference_loss`].

    Raises:
        ValueError: A name is not registered, or the batch has `margins`, `rejected_logq` or `chosen_levels` and no
            loss uses them.

    Example:
        >>> one, two = torch.tensor([-1.0]), torch.tensor([-2.0, -4.0])
        >>> zeros, lengths = torch.zeros_like, torch.ones_like
        >>> batch = ScoredBatch(
        ...     one, two, zeros(one), zeros(two), torch.tensor([2]), lengths(one), lengths(two), torch.tensor(1.0)
        ... )
        >>> weighted_loss(["hinge", "sft"], [1.0, 0.5], batch, args=None)  # 0.8 and 1
        tensor(1.3000)
    """
    parts = [preference_loss(name, batch, args).mean() for name in names]
    if batch.margins is not None and not vars(batch).keys() & {"deltas", "logp_deltas"}:
        raise ValueError(
            f"The dataset has a column `margins`, and no loss of loss_type={list(names)} uses it. Remove the column, "
            "or choose a loss that is made of `ScoredBatch.deltas`, such as 'dmpo' or 'softmax'."
        )
    check_columns(names, [column for column in _LOSS_OF_COLUMN if getattr(batch, column) is not None])
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum()
