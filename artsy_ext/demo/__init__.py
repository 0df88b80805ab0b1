"""The built-in backbone E0: a small frozen vision transformer, so that the demo runs without a download.

`pretrain` makes the weight file, CARD.md says how and on what, and `load_backbone` is what the learner calls.
"""

from artsy_ext.demo.backbone import FeatureStatistics, create_backbone, load_backbone

__all__ = ["FeatureStatistics", "create_backbone", "load_backbone"]
