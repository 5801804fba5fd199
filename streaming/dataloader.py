"""`StreamingDataLoader`: torch's DataLoader, which knows where in the epoch it is. The one module that imports torch.

Where torch's own collation is all that would happen to the samples, batches are put together column by column in this
process, in the order in which workers would have given them. A worker could only read what this process can map, and
would have to send it through a pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from streaming.dataset import StreamingDataset
from streaming.hinting import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = ["StreamingDataLoader"]

# What an ordinary user may have by default (fs.pipe-max-size).
PIPE = 1 << 20
# Columns that cost less to decode than to send to another process.
_CHEAP = ("bytes", "str", "int", "uint", "float", "ndarray", "str_int", "str_float")


class StreamingDataLoader(DataLoader[Any]):
    """A DataLoader over a `StreamingDataset` that can be saved and resumed in mid-epoch.

    All arguments are those of torch's DataLoader. With `collate_fn=None` and nothing overridden in the dataset, samples
    are read and collated in this process, and `num_workers` only says how the order is dealt.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_samples_yielded = 0
        dataset: Any = self.dataset
        if isinstance(dataset, StreamingDataset) and dataset.batch_size is None:
            dataset.batch_size = self.batch_size

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own class
        """The batches of this rank in the next epoch."""
        self.num_samples_yielded = 0
        for batch in self._gathered() if self._gathers() else self._from_workers():
            self.num_samples_yielded += self._get_batch_size(batch)
            yield batch

    def _from_workers(self) -> Iterator[Any]:
        """torch's own way, through a pipe that takes a batch at once: with the usual 64 KiB both sides keep waiting."""
        batches: Any = super().__iter__()
        queue = getattr(batches, "_worker_result_queue", None)
        if queue is not None:
            with contextlib.suppress(OSError):  # more than a user may have: it stays as it is
                fcntl.fcntl(queue._reader.fileno(), fcntl.F_SETPIPE_SZ, PIPE)
        try:
            yield from batches
        except Exception:
            # left to the garbage collector, which takes their queues away first, each worker takes five seconds to end
            if queue is not None and not self.persistent_workers:
                batches._shutdown_workers()
            raise

    def _gathers(self) -> bool:
        dataset: Any = self.dataset
        return (
            isinstance(dataset, StreamingDataset)
            and dataset.is_plain
            and self.collate_fn is default_collate
            and self.worker_init_fn is None
            and self.batch_size is not None
            and dataset.batch_size is not None
            and all(
                schema.format == "mds" and all(_is_cheap(each) for each in schema.column_encodings)
                for schema in dataset.schemas
            )
        )

    def _gathered(self) -> Iterator[Any]:
        """Batches as workers would give them, without workers."""
        dataset: Any = self.dataset
        size = self.batch_size
        assert size is not None
        workers = max(self.num_workers, 1)
        order = dataset.begin_epoch(workers)
        queues = [Lane(part).ids for part in order]
        batches = _in_turn(queues, size, drop_last=self.drop_last)
        pin = self.pin_memory and torch.cuda.is_available()
        collate = _collator(dataset)
        window = max((dataset.predownload or 0) // size, 1)
        pages = dataset.page_watch()
        waiting = deque(itertools.islice(batches, window))
        if waiting:
            dataset.bring(waiting[0])
        for ids in waiting:
            dataset.prefetch(ids)
        for number in itertools.count():
            for ids in itertools.islice(batches, 1):
                dataset.prefetch(ids)
                waiting.append(ids)
            if not waiting:
                dataset.finish_epoch(order.shape[1])
                return
            dataset.tell_position(number, size, workers)
            pages.have_read(size)
            yield _pinned(collate(waiting.popleft().tolist()), pin)

    def _get_batch_size(self, batch: Any) -> int:
        """Samples in a batch: a mapping or a sequence of columns has as many as its first column, all else its own."""
        if isinstance(batch, torch.Tensor):
            return len(batch)
        if hasattr(batch, "values") and hasattr(batch, "keys"):  # dict, and what is like one
            for value in batch.values():
                return len(value)
            raise ValueError("Batch is empty")
        first = batch[0]
        return len(first if isinstance(first, (torch.Tensor, Sequence, np.ndarray)) and not _is_text(first) else batch)

    def state_dict(self) -> dict[str, Any] | None:
        """Where the run is, for `load_state_dict`; None where the dataset is no StreamingDataset."""
        dataset: Any = self.dataset
        if not isinstance(dataset, StreamingDataset):
            return None
        return dataset.state_dict(self.num_samples_yielded * dataset.num_ranks, from_beginning=False)

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Go on from there at the next iteration."""
        dataset: Any = self.dataset
        if isinstance(dataset, StreamingDataset):
            dataset.load_state_dict(obj)
            self.num_samples_yielded = 0

    def __del__(self) -> None:
        # workers that wait for work would keep the interpreter from ending
        iterator = getattr(self, "_iterator", None)
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes))


def _is_cheap(encoding: str) -> bool:
    return encoding.partition(":")[0].rstrip("0123456789") in _CHEAP


def _in_turn(queues: list[NDArray[np.int64]], size: int, *, drop_last: bool) -> Iterator[NDArray[np.int64]]:
    """A batch of each worker in turn, those that have none left being passed over."""
    longest = max(len(queue) for queue in queues)
    for at in range(0, longest, size):
        for queue in queues:
            batch = queue[at : at + size]
            if len(batch) == size or (len(batch) and not drop_last):
                yield batch


def _pinned(batch: Any, pin: bool) -> Any:
    if not pin:
        return batch
    from torch.utils.data._utils.pin_memory import pin_memory

    return pin_memory(batch)  # type: ignore[no-untyped-call]


def _collator(dataset: Any) -> Callable[[list[int]], Any]:
    """`default_collate` of the samples with these ids; the columns that it would leave as lists without its help."""
    read = dataset.read
    columns: dict[str, Any] = {}
    for schema in dataset.schemas:
        for name, encoding in zip(schema.column_names, schema.column_encodings, strict=True):
            same = columns.setdefault(name, encoding) == encoding
            if not same:
                return lambda ids: default_collate([read(sample_id) for sample_id in ids])

    def collate(ids: list[int]) -> Any:
        samples = [read(sample_id) for sample_id in ids]
        batch: dict[str, Any] = {}
        for name, encoding in columns.items():
            values = [sample[name] for sample in samples]
            if encoding in ("bytes", "str"):
                batch[name] = values
            elif encoding == "int":
                batch[name] = torch.tensor(values)
            elif isinstance(values[0], np.ndarray) and len({value.shape for value in values}) == 1:
                batch[name] = torch.from_numpy(np.stack(values))  # one copy; torch would complain of read-only arrays
            elif isinstance(values[0], np.generic):
                batch[name] = torch.from_numpy(np.array(values))
            else:
                batch[name] = default_collate(values)
        return batch

    return collate
