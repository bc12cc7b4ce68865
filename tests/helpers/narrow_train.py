"""The command of `detectors.train` with few and narrow layers: `python -m tests.helpers.narrow_train CONFIG`."""

from __future__ import annotations

import sys

from detectors import train
from tests.helpers.models import few_layers, narrow_heads

if __name__ == "__main__":
    with few_layers(), narrow_heads():
        sys.exit(train.main())
