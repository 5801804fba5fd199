"""What mosaicml-streaming computed (py1b: 0.9.1, the rest 0.13.0), written down as the format that we keep."""

from __future__ import annotations

ALGORITHMS = ("naive", "py1s", "py2s", "py1b", "py1br", "py1e")

# (shard sizes, canonical nodes, seed, epoch, block size) and the ids, one row an algorithm
SMALL: list[tuple[tuple[list[int], int, int, int, int], dict[str, str]]] = [
    (
        ([5, 3], 1, 0, 0, 8),
        dict(zip(ALGORITHMS, ("24365017", "24301756", "31024675", "24365017", "24671035", "24350716"), strict=True)),
    ),
    (
        ([5, 3], 1, 9176, 0, 8),
        dict(zip(ALGORITHMS, ("21567304", "12430765", "13402567", "21564307", "20614537", "12436075"), strict=True)),
    ),
    (
        ([5, 3], 1, 9176, 1, 8),
        dict(zip(ALGORITHMS, ("63425170", "43210756", "40312576", "73426510", "20345167", "43217056"), strict=True)),
    ),
    (
        ([5, 3], 2, 9176, 0, 8),
        dict(zip(ALGORITHMS, ("21567304", "07653241", "25670341", "65073241", "60573412", "76053214"), strict=True)),
    ),
    (([5, 3], 1, 9176, 0, 262144), {"py1e": "21654730", "py1br": "01275643"}),
]
TWELVE = {
    "py1s": [4, 5, 0, 3, 2, 1, 7, 6, 11, 8, 10, 9],
    "py2s": [7, 4, 2, 3, 1, 0, 6, 5, 8, 10, 9, 11],
    "py1b": [1, 4, 0, 5, 2, 3, 11, 6, 7, 10, 8, 9],
    "py1br": [0, 1, 5, 4, 3, 2, 6, 7, 9, 8, 11, 10],
    "py1e": [4, 0, 5, 3, 2, 1, 6, 10, 7, 8, 9, 11],
}

# first 16 digits of the SHA-256 of the ids as little-endian int64
UNEVEN = dict(
    zip(
        ALGORITHMS,
        (
            "244fb3aac1242f13",
            "0daf505b7c285058",
            "d68a33abaae7f310",
            "f0c5c93f1a5da262",
            "ff976871abe1038b",
            "6146f1de98a9bbb6",
        ),
        strict=True,
    )
)
MILLION = dict(
    zip(
        ALGORITHMS,
        (
            "c1de8c70f11aae6d",
            "78f4504d0e8cbd05",
            "a1a324ed17b7b3e8",
            "7b2fe2bc3d70dc59",
            "fc3d905fd53b7e85",
            "db2877fceec681a7",
        ),
        strict=True,
    )
)

# arguments of get_partitions, and its result
PARTITIONS = [
    (("orig", 10, 1, 1, 1, 1, 4), [[[[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]]]]),
    (
        ("orig", 10, 2, 1, 2, 2, 2),
        [[[[[0, 1], [4, -1]], [[2, 3], [-1, -1]]], [[[5, 6], [9, -1]], [[7, 8], [-1, -1]]]]],
    ),
    (
        ("orig", 11, 2, 2, 2, 1, 2),
        [[[[[0, 2], [4, -1]]], [[[1, 3], [4, -1]]]], [[[[5, 7], [9, -1]]], [[[6, 8], [10, -1]]]]],
    ),
    (("orig", 11, 2, 2, 2, 1, 2, 4), [[[[[2, 4]]], [[[3, 4]]]], [[[[7, 9]]], [[[8, 10]]]]]),
    (
        ("orig", 9, 1, 2, 2, 1, 2),
        [[[[[0, 4], [8, -1]]], [[[2, 6], [6, -1]]]], [[[[1, 5], [7, -1]]], [[[3, 7], [7, -1]]]]],
    ),
    (("orig", 3, 4, 1, 2, 1, 2), [[[[[0, 2]]], [[[1, 0]]]]]),
    (
        ("relaxed", 24, 2, 3, 1, 1, 4, 6, 2),
        [
            [[[[3, 4, 5, 6], [9, 10, 11, -1]]]],
            [[[[7, 8, 15, 16], [-1, -1, 21, 22]]]],
            [[[[17, 18, 19, 20], [23, -1, -1, -1]]]],
        ],
    ),
]

# arguments of get_sampling after the sizes [5, 3, 4], and its result
SAMPLINGS = [
    ((7, 1, 9176, 0, True), [2, 2, 3]),
    ((7, 2, 9176, 0, True), [3, 0, 4]),
    ((30, 1, 9176, 1, True), [13, 7, 10]),
    ((24, 1, 9176, 0, True), [10, 6, 8]),
]

# batching method → epoch 0 of two streams, [5, 3] and [4], half each of 10 samples
TWO_STREAMS = {
    "random": [[11, 8], [4, 6], [8, 9], [10, 5], [7, 3]],
    "per_stream": [[10, 9], [6, 4], [8, 11], [7, 3]],
    "stratified": [[6, 10], [4, 9], [7, 8], [3, 11], [5, 11]],
    "device_per_stream": [[10, 9], [6, 4], [8, 11], [7, 3], [-1, -1]],
}
