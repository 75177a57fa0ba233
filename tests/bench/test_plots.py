"""Pictures hold what they are given."""

from hippo.bench.plots import draw_timeline
from hippo.trace import Span

AR = [Span("target", "prefill", 0.0, 1.0, 9), Span("target", "verify", 1.0, 1.2, 1)]
BOTH = [*AR, Span("draft", "prefill", 0.5, 0.9, 2), Span("draft", "propose", 1.0, 1.1, 1)]
CLIPPED = [Span("target", "prefill", 0.0, 1.0, 9)]


def test_a_timeline_has_a_bar_for_each_span_in_its_model_s_row(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.broken_barh", lambda self, bars, row, **_: drawn.append((bars, row)))
    draw_timeline({"ar": AR, "hippo": BOTH, "cut off": CLIPPED}, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    bars = [[(began, round(length, 9), row[0]) for bars, row in panel for began, length in bars]
            for panel in (drawn[start : start + 8] for start in range(0, len(drawn), 8))]  # fmt: skip
    target = [(0.0, 1.0, 1.1), (1.0, 0.2, 1.1)]
    assert bars == [*[target] * 2, *[[(0.5, 0.4, 0.1), (1.0, 0.1, 0.1), *target]] * 2, *[target[:1]] * 2]


def test_a_timeline_says_whose_it_is(tmp_path):
    draw_timeline({"parallel+hippo": BOTH}, tmp_path / "timeline.svg")
    text = (tmp_path / "timeline.svg").read_text()
    for words in ("parallel+hippo, 1 target forwards after the prompt", "vision", "prefill", "verify", "propose"):
        assert f"<!-- {words} -->" in text
