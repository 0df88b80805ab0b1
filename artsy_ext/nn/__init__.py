"""Modules of Artsy over a timm ViT (extra `learn`): sub-networks, synapses, prototypes, and the network of them all."""

from artsy_ext.nn.bank import AdapterBank, SubNetworkBank
from artsy_ext.nn.head import PrototypeHead, class_prototypes
from artsy_ext.nn.network import ArtsyNetwork
from artsy_ext.nn.statistics import ClassStatistics, Whitening, covariance, within_class_covariance
from artsy_ext.nn.synapses import SYNAPSES, MLPSynapses, STDPSynapses, SynapseBank
from artsy_ext.nn.vit import RoutedViT

__all__ = [
    "SYNAPSES",
    "AdapterBank",
    "ArtsyNetwork",
    "ClassStatistics",
    "MLPSynapses",
    "PrototypeHead",
    "RoutedViT",
    "STDPSynapses",
    "SubNetworkBank",
    "SynapseBank",
    "Whitening",
    "class_prototypes",
    "covariance",
    "within_class_covariance",
]
