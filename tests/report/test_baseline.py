"""Comparing with generate()."""

import pytest

from hippo.report.baseline import Baseline, Comparison
from hippo.request import Output
from hippo.stats import Seconds, Stats


def run(ids, total, decode):
    return Output("", ids, Stats(seconds=Seconds(total=total, decode=decode)))


def test_speedups_are_medians_of_pairs_at_equal_token_counts():
    outputs = [run([1, 2], 1.0, 0.5), run([1, 2], 2.0, 0.5), run([1, 2], 1.0, 0.5)]
    baselines = [Baseline("", [1, 2], 2.0, 3.0), Baseline("", [1, 2], 2.0, 2.0), Baseline("", [1, 2, 3, 4], 8.0, 8.0)]
    comparison = Comparison(outputs, baselines)
    assert comparison.speedup == {"decode": pytest.approx(4.0), "end_to_end": pytest.approx(3.0)}
    assert not comparison.identical and Comparison(outputs[:2], baselines[:2]).identical
