"""How ``profile-1.h5`` was made: a block profile before residual sums were stored. Never written again.

It holds ``profile_samples.profile()``.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from profile_samples import profile

    from isometry.store import open_store
    from isometry.store.profiles import add_profile

    add_profile(open_store(sys.argv[1], "w"), profile())
