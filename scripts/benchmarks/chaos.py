"""Readers compare every byte for ten minutes while whatever can be is killed, stopped, broken or filled."""

from __future__ import annotations

import os
import sys

from tests.chaos.run import main

if __name__ == "__main__":
    os.nice(5)  # it takes all processors that there are
    sys.exit(main())
