"""Parts of a plan that runs on several machines take, one each: job arrays need no other engine."""

import re
from collections.abc import Sequence
from typing import NamedTuple, Self, TypeVar

from subspace_adv.errors import UserError, brief

Item = TypeVar("Item")


class Shard(NamedTuple):
    """Every so many-th chunk of a whole plan, whatever is done of it, so that all runs take the same parts."""

    number: int  # from 1 on
    of: int

    @classmethod
    def read(cls, text: str) -> Self:
        """What a text such as "2/3" tells.

        Raises:
            UserError: if it is none, telling which there are.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not int(found[2]):
            raise UserError(f"command line: --shard: {brief(text)}: must be i/n, such as 2/3, the second of three")
        shard = cls(int(found[1]), int(found[2]))
        if not 1 <= shard.number <= shard.of:
            told = f"must be from 1/{shard.of} to {shard.of}/{shard.of}; let the job array count from 1 to {shard.of}"
            raise UserError(f"command line: --shard: {brief(text)}: {told}")
        return shard

    def part(self, chunks: Sequence[Item]) -> Sequence[Item]:
        """Its part of all chunks."""
        return chunks[self.number - 1 :: self.of]
