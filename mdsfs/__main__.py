"""`python -m mdsfs` is the command `mdsfs`."""

import sys

from mdsfs.cli.main import main

sys.exit(main())
