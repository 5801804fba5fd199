"""The example dashboard and alert rules speak of metrics that there are, and fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from mdsfs.metrics.exposition import exposition
from tests.engine.conftest import ROOT

from .documents import document

if TYPE_CHECKING:
    from pathlib import Path

RULES = ROOT / "mdsfs" / "metrics" / "alerts.yml"
DASHBOARD = ROOT / "mdsfs" / "metrics" / "dashboard.json"
PROMTOOL = shutil.which("promtool")


def rules() -> list[dict[str, object]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Every PromQL expression of both files."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [str(rule["expr"]) for rule in rules()] + [each["expr"] for panel in panels for each in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_each_metric_exists(expression: str) -> None:
    """A name in an expression is one that the engine gives."""
    trouble = {"what": "store", "subject": "s3://b", "message": "", "since": 0, "last": 0, "times": 1}
    shown = set(re.findall(r"^([a-z_]+)[{ ]", exposition(document(problems=[trouble])), re.MULTILINE))
    named = set(re.findall(r"\b(?:mdsfs|process)_[a-z_]+", expression))
    assert named <= shown


def test_every_rule_says_what_to_do() -> None:
    """Severity, a summary, and a description."""
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")  # type: ignore[index]
        assert {"summary", "description"} <= rule["annotations"].keys()  # type: ignore[attr-defined]


def test_panels_have_places_of_their_own() -> None:
    """No two panels overlap, and no id is used twice."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


CASES = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'mdsfs_problem{{instance="h", what="store", subject="s3://b"}}', values: '_ _ 1x10 _x10'}}
      - {{series: 'mdsfs_read_waited_seconds_total{{instance="h"}}', values: '0+480x30'}}
    alert_rule_test:
      - {{eval_time: 3m, alertname: MdsfsStoreFails}}
      - eval_time: 5m
        alertname: MdsfsStoreFails
        exp_alerts:
          - exp_labels: {{severity: page, instance: h, subject: "s3://b"}}
            exp_annotations:
              summary: "h cannot read from s3://b"
              description: >-
                The store or the way to it fails; what is cached is still served. mdsfs doctor SOURCE says where.
      - {{eval_time: 25m, alertname: MdsfsStoreFails}}
      - eval_time: 25m
        alertname: MdsfsReadersStall
        exp_alerts:
          - exp_labels: {{severity: ticket, instance: h}}
            exp_annotations:
              summary: "8 readers of h wait at any time"
              description: >-
                The page at the engine's --metrics address shows whether store, disk or cache size bounds them.
"""


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_promtool_agrees(tmp_path: Path) -> None:
    """Rules, metrics and two cases pass Prometheus' own checks."""
    assert PROMTOOL is not None
    cases = tmp_path / "cases.yml"
    cases.write_text(CASES.format(rules=RULES))
    for argv, said in (
        (["check", "rules", str(RULES)], ""),
        (["check", "metrics"], exposition(document())),
        (["test", "rules", str(cases)], ""),
    ):
        done = subprocess.run([PROMTOOL, *argv], input=said, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
