"""The definitions of all ops in plain PyTorch: `reference.stdp` has the signature of `artsy_ext.ops.stdp`.

They check nothing and are not fast; every kernel is tested against them.
"""

from artsy_ext.ops.combine_routes.reference import combine_routes
from artsy_ext.ops.consolidate.reference import consolidate
from artsy_ext.ops.encode_spikes.reference import encode_spikes
from artsy_ext.ops.plan_routes.reference import plan_routes
from artsy_ext.ops.prototype_logits.reference import prototype_logits
from artsy_ext.ops.routed_adapter.reference import routed_adapter
from artsy_ext.ops.stdp.reference import stdp, stdp_, stdp_consolidate
from artsy_ext.ops.synapse_currents.reference import synapse_currents
from artsy_ext.ops.synapse_scores.reference import synapse_scores

__all__ = [
    "combine_routes",
    "consolidate",
    "encode_spikes",
    "plan_routes",
    "prototype_logits",
    "routed_adapter",
    "stdp",
    "stdp_",
    "stdp_consolidate",
    "synapse_currents",
    "synapse_scores",
]
