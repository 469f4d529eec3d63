"""Names and marks by which the parts of a sweep's results know each other in a file."""

from __future__ import annotations

# A series of this beginning is the record of a point that failed.
FAILED = "failed "
# The ``role`` of a law that measurements were compared with, and of a spectrum on the way of a training run.
LAW, ON_THE_WAY = "theory", "training"


def evaluations_of(name: str) -> str:
    """The series of accuracies that belongs to the training curves of that name (`isometry.training.record`)."""
    return f"{name} evaluation"
