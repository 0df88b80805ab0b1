"""Modules of Artsy over a timm ViT: sub-networks, synapses, prototypes, and the network of them all. And STDP for
other models: a learner in the place of SpikingJelly's, update rules in the place of BindsNET's.

Only RoutedViT needs more than torch (timm, extra `learn`).
"""

from artsy_ext.nn.bank import AdapterBank, SubNetworkBank
from artsy_ext.nn.head import PrototypeHead, class_prototypes
from artsy_ext.nn.learning_rules import DiehlAndCook, PostPre, WeightDependentPostPre
from artsy_ext.nn.network import ArtsyNetwork
from artsy_ext.nn.statistics import ClassStatistics, Whitening, covariance, within_class_covariance
from artsy_ext.nn.stdp_learner import STDPLearner
from artsy_ext.nn.synapses import SYNAPSES, MLPSynapses, STDPSynapses, SynapseBank
from artsy_ext.nn.vit import RoutedViT

__all__ = [
    "SYNAPSES",
    "AdapterBank",
    "ArtsyNetwork",
    "ClassStatistics",
    "DiehlAndCook",
    "MLPSynapses",
    "PostPre",
    "PrototypeHead",
    "RoutedViT",
    "STDPLearner",
    "STDPSynapses",
    "SubNetworkBank",
    "SynapseBank",
    "WeightDependentPostPre",
    "Whitening",
    "class_prototypes",
    "covariance",
    "within_class_covariance",
]
