"""Defaults of the estimators and of the measurements that call them."""

from __future__ import annotations

# Probes and Golub-Kahan steps of the quadrature, and leading values reported with it.
PROBES, STEPS, TOP = 16, 50, 6
# Leading triplets of the randomized method, the residual at which one has converged, and probes and steps of the rest.
RANK, TOL = 20, 1e-2
REST_PROBES, REST_STEPS = 8, 30
