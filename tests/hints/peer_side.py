"""Run by the interpreter of .peer: reads some batches of an epoch of a mounted dataset, and goes on when told to.

peer_side.py FOLDER EPOCH WORKERS BATCHES…: after each number of batches a line, then one line of stdin is waited for.
"""

from __future__ import annotations

import sys

from torch.utils.data import DataLoader

from streaming import StreamingDataset


def main(folder: str, epoch: int, workers: int, stops: list[int]) -> None:
    dataset = StreamingDataset(local=folder, shuffle=True, shuffle_seed=7, batch_size=4, num_canonical_nodes=1)
    dataset.next_epoch = epoch
    batches = iter(DataLoader(dataset, batch_size=4, num_workers=workers))
    read = 0
    for stop in stops:
        while read < stop:
            next(batches)
            read += 1
        print(read, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(each) for each in sys.argv[4:]])
