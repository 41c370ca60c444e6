"""What a column of labels is, and its values as class ids, zeros and ones, or scores."""

from nlpkd.data.labels.single_label import encode_labels
from nlpkd.data.labels.targets import Targets, encode_targets, read_task

__all__ = ["Targets", "encode_labels", "encode_targets", "read_task"]
