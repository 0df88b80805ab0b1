"""Routes: which sub-network runs for which sample, the plan that all routed ops share."""

from typing import NamedTuple

import torch
from torch import Tensor


class Routes(NamedTuple):
    """The functional (sample, sub-network) pairs of a batch, from `plan_routes`.

    P pairs, B samples, S sub-networks; all int64 but `overflow`. With a capacity, P is the capacity, `offsets[S]` is
    the used count, and the padding behind it has sample 0 and sub-network 0: valid indices that every op ignores.
    """

    sample: Tensor
    """[P] the sample of each pair; pairs are sorted by sub-network, then sample."""
    subnetwork: Tensor
    """[P] the sub-network of each pair."""
    offsets: Tensor
    """[S+1] the pairs of sub-network s are offsets[s] up to offsets[s+1]."""
    order: Tensor
    """[P] the pairs sorted by sample, then sub-network."""
    sample_offsets: Tensor
    """[B+1] the pairs of sample b are order[sample_offsets[b]] up to order[sample_offsets[b+1]]."""
    overflow: Tensor
    """[] bool: there were more pairs than the capacity. Ops that use such a plan return NaN."""

    def part(self, begin: int, end: int) -> "Routes":
        """The plan of the pairs from `begin` to `end`, to run a batch in chunks; of the same samples."""
        within = (self.order >= begin) & (self.order < end)
        before = torch.cat([within.new_zeros(1, dtype=torch.int64), within.cumsum(0)])
        return self._replace(
            sample=self.sample[begin:end],
            subnetwork=self.subnetwork[begin:end],
            offsets=self.offsets.clamp(begin, end) - begin,
            order=self.order[within] - begin,
            sample_offsets=before[self.sample_offsets.clamp(max=len(within))],
        )

    def check(self) -> "Routes":
        """Returns the plan; raises ValueError where it overflowed. On a GPU this waits for the device."""
        if bool(self.overflow):
            raise ValueError(
                f"plan_routes: capacity must be at least the number of functional pairs, {int(self.offsets[-1])}, "
                f"got {len(self.sample)}"
            )
        return self
