"""What would fail at some later batch, found before the first step: the longest rows go through the model."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from kdcache.encoder.batching import Encoded, check_ids
from kdcache.errors import KdcacheError, ModelError, reason_of

Read = TypeVar("Read")


def read_longest(
    read: Callable[[Encoded], Read], config: Any, rows: Mapping[str, Encoded], name: str, cure: str
) -> Iterator[tuple[str, Encoded, Read]]:
    """Read the longest and the shortest row of each split together, so that one of them is padded.

    Args:
        read: how the model reads two rows.
        config: of the model.
        rows: split → tokenised rows, of all splits that it will read.
        name: of the model, for messages.
        cure: what to do about a row that it cannot read, for messages.

    Yields:
        The split, the two rows and what ``read`` gives for them; nothing for a split without rows.

    Raises:
        ModelError: a token has no embedding, or ``read`` fails.
    """
    for split, encoded in rows.items():
        check_ids(config, encoded, split, name)
    for split, encoded in rows.items():
        if not len(encoded):
            continue
        two = encoded.take([int(encoded.lengths.argmax()), int(encoded.lengths.argmin())])
        try:
            result = read(two)
        except KdcacheError:
            raise
        except Exception as error:  # of whatever code the model runs
            raise ModelError(
                f"{name}: it must read the longest row of {split}, {two.lengths.max()} tokens, got: "
                f"{reason_of(error)}. {cure}"
            ) from error
        yield split, two, result
