"""The ops: STDP over many sub-networks and silent-synapse routing, also as `torch.ops.artsy.*`.

Each op has a folder of its name with its public function, its definition (`reference.py`) and its registration.
Notation: T time steps, B samples, S sub-networks, I pre- and J post-synaptic neurons, D features, N tokens, R
bottleneck, P functional (sample, sub-network) pairs, C classes.
"""

from artsy_ext.ops import reference
from artsy_ext.ops.combine_routes import combine_routes
from artsy_ext.ops.consolidate import consolidate
from artsy_ext.ops.encode_spikes import encode_spikes
from artsy_ext.ops.plan_routes import plan_routes
from artsy_ext.ops.plan_routes.routes import Routes
from artsy_ext.ops.prototype_logits import prototype_logits
from artsy_ext.ops.routed_adapter import routed_adapter
from artsy_ext.ops.stdp import STDPRule, Traces, Triplet, stdp, stdp_, stdp_consolidate
from artsy_ext.ops.stdp_conv import stdp_conv
from artsy_ext.ops.synapse_currents import synapse_currents
from artsy_ext.ops.synapse_scores import synapse_scores

__all__ = [
    "Routes",
    "STDPRule",
    "Traces",
    "Triplet",
    "combine_routes",
    "consolidate",
    "encode_spikes",
    "plan_routes",
    "prototype_logits",
    "reference",
    "routed_adapter",
    "stdp",
    "stdp_",
    "stdp_consolidate",
    "stdp_conv",
    "synapse_currents",
    "synapse_scores",
]
