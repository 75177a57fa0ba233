"""hippo demo's figures say so when the machine was disturbed."""

import json

import pytest
from typer.testing import CliRunner

from hippo.cli import common
from hippo.cli.app import app
from hippo.llm import Output
from hippo.report.baseline import Baseline, Comparison
from hippo.report.tables import stats_table
from hippo.stats import Stats


def comparison(*ratios):
    """Runs in which generate() took so many times our second."""
    outputs = [Output("word", [1, 2], Stats()) for _ in ratios]
    for output in outputs:
        output.stats.seconds.total = output.stats.seconds.decode = 1.0
    return Comparison(outputs, [Baseline("word", [1, 2], ratio, ratio) for ratio in ratios])


@pytest.mark.parametrize(
    ("ratios", "disturbed"), [((17.74, 3.91, 37.71), True), ((3.0, 2.0, 4.0), False), ((9,), False)]
)
def test_runs_that_differ_by_more_than_a_factor_of_two_are_not_trusted(capsys, ratios, disturbed):
    seen = comparison(*ratios)
    common.stderr.print(stats_table(seen.outputs[0].stats, seen))
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ("MACHINE DISTURBED" in told) == ("do not trust" in told) == disturbed
    assert common.as_json(seen.outputs[0], seen)["disturbed"] is disturbed


def test_demo_says_whether_it_was_disturbed():
    result = json.loads(CliRunner().invoke(app, ["demo", "--runs", "1", "--json"], catch_exceptions=False).stdout)
    assert result["disturbed"] in (True, False) and result["identical"] is True
    assert result["stats"]["new_tokens"] > 60 and result["method"] == "hippo"
