"""Prefixes and roles that mark the results of a sweep in a file. Internal."""

from __future__ import annotations

# Prefix of the series that records a failed point.
FAILED = "failed "
# The ``role`` of a law that measurements were compared with, and of a spectrum measured during training.
LAW, ON_THE_WAY = "theory", "training"
