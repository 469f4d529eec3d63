"""The one exception to the flow of imports: a result that draws itself on request."""

from __future__ import annotations

from types import ModuleType


def report_package() -> ModuleType:
    """`isometry.report`, loaded when a result is asked for its picture and not before."""
    from isometry import report

    return report
