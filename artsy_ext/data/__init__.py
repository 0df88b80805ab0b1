"""Data sets as streams of tasks: where every learner, baseline and benchmark of `artsy_ext` gets its data.

    load_source("digits").stream(seed=0, transform=backbone.transform)

A `Source` holds labelled images under a name; its `stream` shows their classes a few at a time. A new source needs a
function that makes a `Source` and an entry in `SOURCES`, nothing else. `class_incremental` cuts any labelled images
into tasks.
"""

from artsy_ext.data.images import Images, ImageSet
from artsy_ext.data.sources import BUILT_IN, FOLDER, SOURCES, Source, check_source, load_source
from artsy_ext.data.streams import Stream, Task, class_incremental, task_sizes

__all__ = [
    "BUILT_IN",
    "FOLDER",
    "SOURCES",
    "ImageSet",
    "Images",
    "Source",
    "Stream",
    "Task",
    "check_source",
    "class_incremental",
    "load_source",
    "task_sizes",
]
