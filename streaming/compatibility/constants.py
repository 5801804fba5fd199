"""mosaicml-streaming's constants. Its shared memory segments and lock files don't exist here: only their names do."""

from __future__ import annotations

LOCALS = "locals"
BARRIER = "barrier"
NEXT_EPOCH = "next_epoch"
CACHE_USAGE = "cache_usage"
SHARD_STATES = "shard_states"
SHARD_ACCESS_TIMES = "shard_access_times"
RESUME = "resume"
EPOCH_SHAPE = "epoch_shape"
EPOCH_DATA = "epoch_data"
SHM_TO_CLEAN = [
    LOCALS,
    BARRIER,
    NEXT_EPOCH,
    CACHE_USAGE,
    SHARD_STATES,
    SHARD_ACCESS_TIMES,
    RESUME,
    EPOCH_SHAPE,
    EPOCH_DATA,
]
BARRIER_FILELOCK = "barrier_filelock"
CACHE_FILELOCK = "cache_filelock"

# Seconds that mosaicml-streaming sleeps between two looks at another process's state; nothing here polls.
TICK = 0.007
# Seconds that a download may take.
DEFAULT_TIMEOUT = 60.0
