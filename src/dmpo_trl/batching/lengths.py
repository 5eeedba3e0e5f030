"""Lengths of rows: what a row is padded to."""

# Queries and keys of one block of an attention kernel
BLOCK = 128


def row_length(longest: int, multiple: int | None = None, *, skip_half_blocks: bool = False) -> int:
    """Return the length that rows are padded to.

    Args:
        longest: Tokens of the longest row.
        multiple: Round up to a multiple of this.
        skip_half_blocks: Go on to the next length where this one is 64 modulo 128. At these lengths the backward pass
            of cuDNN's masked attention returns NaN for rows whose log-sum-exp is low (pytorch#196678).

    Example:
        >>> row_length(190), row_length(190, 8), row_length(192, 8, skip_half_blocks=True)
        (190, 192, 200)
    """
    multiple = multiple or 1
    length = -(-max(longest, 1) // multiple) * multiple
    if skip_half_blocks and length % BLOCK == BLOCK // 2:
        # `multiple` is no multiple of 128, whose lengths have no half block, so that the next length has none
        length += multiple
    return length
