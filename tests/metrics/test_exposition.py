"""The text format, as the Prometheus client's own parser reads it."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mdsfs.metrics.exposition import exposition
from mdsfs.metrics.timings import BOUNDS

from .documents import document


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels; no two are alike."""
    found = [
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_figures_of_the_document() -> None:
    """Gauges and counters have the document's values and labels."""
    found = samples(exposition(document()))
    assert found["mdsfs_cache_limit_bytes", frozenset()] == 100 << 20
    assert found["mdsfs_remote_received_bytes_total", frozenset()] == 1000
    assert found["mdsfs_reads_total", frozenset({("result", "at_once")})] == 90
    assert found["mdsfs_read_waited_seconds_total", frozenset()] == 2.5
    shards = frozenset({("dataset", "abc"), ("url", "s3://bucket/ds"), ("state", "partial")})
    assert found["mdsfs_dataset_shards", shards] == 1
    assert found["mdsfs_mount_read_bytes_total", frozenset({("mountpoint", "/mnt/ds")})] == 4096
    assert found["mdsfs_clients", frozenset({("kind", "reader")})] == 1


def test_histograms_are_cumulative() -> None:
    """Buckets grow, the last one is +Inf and equals the count."""
    found = samples(exposition(document()))
    labels = {("outcome", "fetched")}
    buckets = [
        found["mdsfs_read_wait_seconds_bucket", frozenset(labels | {("le", le)})]
        for le in [*(f"{bound:.15g}" for bound in BOUNDS), "+Inf"]
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found["mdsfs_read_wait_seconds_count", frozenset(labels)] == 1
    assert found["mdsfs_read_wait_seconds_sum", frozenset(labels)] == pytest.approx(0.02)


def test_names_and_types_follow_the_conventions() -> None:
    """Counters end in _total; what is measured ends in its base unit; every family has help."""
    for family in text_string_to_metric_families(exposition(document())):
        assert re.fullmatch(r"(mdsfs|process)_[a-z0-9_]+", family.name)
        assert family.documentation.endswith(".")
        # the parser takes `_total` off the name of a family that is a counter
        assert (family.type == "counter") == any(each.name.endswith("_total") for each in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_name_stays_one_label(url: str, mountpoint: str) -> None:
    """Quotes, backslashes, newlines and broken UTF-8 in names change no other line."""
    strange = copy.deepcopy(document())
    strange["datasets"][0]["url"] = url
    strange["clients"][0]["mountpoint"] = mountpoint
    found = samples(exposition(strange))
    assert len(found) == len(samples(exposition(document())))
    shown = {dict(labels)["url"] for name, labels in found if name == "mdsfs_dataset_users"}
    assert shown == {url.encode("utf-8", "replace").decode()}


def test_problems_are_there_only_while_they_last() -> None:
    """A present trouble is a series of its own; without one there is none."""
    trouble = {"what": "store", "subject": "s3://bucket/ds", "message": "no", "since": 0, "last": 0, "times": 3}
    key = "mdsfs_problem", frozenset({("what", "store"), ("subject", "s3://bucket/ds")})
    assert samples(exposition(document(problems=[trouble])))[key] == 1
    assert key not in samples(exposition(document()))


def test_jobs_have_their_figures() -> None:
    """The plan of each job, as far as there is one, and how it fetches each dataset."""
    regime = {"url": "s3://b/ds", "regime": "ranges", "reason": "because", "changes_at_bytes": 4096}
    plan = {"epoch": 3, "position": 10, "horizon": 20, "known": 30, "datasets": [regime]}
    jobs: list[dict[str, Any]] = [{"key": "k1", "epoch": 3, "plan": plan}, {"key": "k2", "epoch": 0, "plan": None}]
    found = {key: value for key, value in samples(exposition(document(jobs=jobs))).items() if "mdsfs_plan" in key[0]}
    job = ("job_key", "k1")
    assert found["mdsfs_plan_horizon_samples", frozenset({job})] == 20
    assert found["mdsfs_plan_regime_changes_at_bytes", frozenset({job, ("url", "s3://b/ds")})] == 4096
    assert found["mdsfs_plan_regime", frozenset({job, ("url", "s3://b/ds"), ("regime", "ranges")})] == 1
    assert all(job in labels for _, labels in found)


def test_an_engine_that_has_done_nothing() -> None:
    """A document without datasets, clients and timings is metrics as well."""
    bare = {"engine": document()["engine"]}
    assert samples(exposition(bare))["mdsfs_build_info", frozenset({("version", "0.1.0")})] == 1
