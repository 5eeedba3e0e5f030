"""Load-balancing loss of a mixture of experts: the same number in the trie layout as over copies of the prompt."""

from typing import Any, cast

import torch
from transformers import PretrainedConfig


def load_balancing_loss(
    config: PretrainedConfig, router_logits: Any, token_weights: torch.Tensor | None
) -> torch.Tensor:
    """Return the number of experts times `sum_e f_e p_e` (Switch Transformer, arXiv 2101.03961, Eq. 4).

    As in transformers, `f_e` and `p_e` are means over the tokens of all layers.

    Args:
        config: Config of the model.
        router_logits: One tensor per layer, each (tokens, experts).
        token_weights: How much each token counts in the shares of tokens `f_e` and the mean probabilities `p_e`,
            (rows, length): the attention mask, or `num_copies`. None for one each.

    Returns:
        The loss, a scalar.

    Example:
        >>> from transformers import MixtralConfig
        >>> config = MixtralConfig(num_local_experts=2, num_experts_per_tok=1)
        >>> evenly = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])  # one token for each expert
        >>> load_balancing_loss(config, (evenly,), None)
        tensor(1.)
    """
    # Every mixture of experts in transformers takes Mixtral's
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = config.get_text_config()
    loss = load_balancing_loss_func(router_logits, config.num_experts, config.num_experts_per_tok, token_weights)
    return cast(torch.Tensor, loss)


def num_copies(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return how many copies of each token the layout of copies would hold.

    In the trie layout a token stands for every completion whose path goes through it.

    Args:
        batch: A batch in the trie layout, as `DataCollatorForMultiPreference` returns it.

    Returns:
        The numbers, (rows, length); 0 for padding.

    Example:
        >>> from dmpo_trl import DataCollatorForMultiPreference
        >>> collator = DataCollatorForMultiPreference(pad_token_id=0, prefix_sharing=True)
        >>> num_copies(collator([{"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [[5, 6], [7]]}]))
        tensor([[3, 3, 1, 1]])
    """
    rows, length = batch["input_ids"].shape
    nodes = batch["scored_rows"] * length + batch["scored_columns"] + length
    owners = batch["token_completions"]
    # Nodes of a path are in ascending order; -1 is a completion that truncation left without a token
    last = nodes.new_full((len(batch["chosen"]) + len(batch["rejected"]),), -1)
    last = last.scatter_reduce(0, owners, nodes[batch["token_pairs"]], "amax")
    # Not by `bincount`, which reads the largest from a GPU
    ends = nodes.new_zeros(rows * length + 1).index_add(0, last + 1, torch.ones_like(last))[1:].view(rows, length)
    # Paths that end in a token's subtree: those that end before the subtree does, less those before the token
    before = torch.nn.functional.pad(ends.cumsum(dim=1), (1, 0))
    return before.gather(1, batch["subtree_end"]) - before[:, :-1]
