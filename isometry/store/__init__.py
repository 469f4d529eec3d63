"""Spectra in HDF5: self-describing, versioned, safe against kills. See docs/file-format.md for the layout.

Public are the names in ``__all__``; what else the modules hold is internal.
"""

from __future__ import annotations

from isometry.store.series import Series
from isometry.store.store import Store, open_store
from isometry.store.validation import validate

__all__ = ["Series", "Store", "open_store", "validate"]
