"""Batched spike-timing-dependent plasticity and silent-synapse routing for PyTorch, and the learner built on them.

`artsy_ext.ops` holds the ops, `artsy_ext.nn` the modules, `artsy_ext.learner` the continual learner (extra `learn`).
"""

from importlib.metadata import version as _version

__version__ = _version("artsy_ext")
