"""The shared page: epochs of ranks that came from one process, and of copies."""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any

import pytest

from streaming.board import Board

STATE = {
    "epoch": 3,
    "sample_in_epoch": 8,
    "num_canonical_nodes": 2,
    "shuffle_seed": 5,
    "initial_physical_nodes": None,
}


def two_epochs(board: Board, answers: Any) -> None:
    """In a child that is no DataLoader worker: a rank."""
    answers.put([board.begin()[0], board.begin()[0], board.next_epoch])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ranks_made_from_one_process_count_by_themselves(method: str) -> None:
    """Each child that is a rank has epochs of its own; its maker's stay as they were."""
    context: Any = multiprocessing.get_context(method)
    board, answers = Board(), context.Queue()
    board.begin()
    children = [context.Process(target=two_epochs, args=(board, answers)) for _ in range(2)]
    for child in children:
        child.start()
    assert [answers.get(timeout=60) for _ in children] == [[1, 2, 3], [1, 2, 3]]
    for child in children:
        child.join()
    assert board.next_epoch == 1


def test_resuming() -> None:
    """A state applies once to its epoch; nodes and seed stay for those after it."""
    board = Board()
    board.load(STATE)
    assert board.begin() == (3, STATE)
    assert board.begin() == (4, STATE | {"sample_in_epoch": 0})


def test_a_copy_is_apart() -> None:
    """What was pickled outside of spawning goes on from there, and neither notices the other."""
    board = Board()
    board.begin()
    copy = pickle.loads(pickle.dumps(board))
    assert copy.begin()[0] == 1
    assert (board.next_epoch, copy.next_epoch) == (1, 2)
