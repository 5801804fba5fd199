"""The filesystem: an engine that owns a cache directory, mounts that show it, and the command `mdsfs`."""

import os

# numpy's linear algebra starts a thread per core that spins for a while: nothing here multiplies matrices, and the
# processes that are started from here inherit it. Whoever has set it knows why.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
