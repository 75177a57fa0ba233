"""A pair without a draft model, as it is loaded, asked and kept on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hippo
from hippo import state
from hippo.cli.demo import CLIP
from hippo.draft.ngram import NGram
from hippo.errors import BadRequest
from hippo.llm import release
from tests.models import generated, inputs, model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def llm():
    """The bundled target without its draft."""
    with hippo.load("tiny", "ngram") as loaded:
        yield loaded


def test_no_draft_is_loaded_and_the_words_are_the_same(llm, tiny):
    assert llm.pair.draft.worker().pid == os.getpid() and llm.draft_processor is None
    assert llm.pair.draft.worker().loaded is None or llm.pair.draft.worker().loaded.size == 0
    expected = tiny.generate(CLIP, method="ar", max_new_tokens=40).token_ids
    for method in ("ar", "sd", "hippo"):
        output = llm.generate(CLIP, method=method, max_new_tokens=40)
        assert output.token_ids == expected and output.stats.method == method and not output.warnings
    assert output.stats.as_dict()["drafter"] == "ngram" and output.kept is None and output.stats.kept_tokens == 0


def test_a_conversation_and_several_requests(llm, tiny):
    questions = ["What happens?", "What happens?", "Where is it at the end?"]
    with_draft, without = tiny.open(CLIP, method="ar"), llm.open(CLIP)
    for question in questions:
        answer = without.ask(question, max_new_tokens=16)
        assert answer.text == with_draft.ask(question, max_new_tokens=16).text
    assert answer.stats.cached_tokens > 500
    params = hippo.SamplingParams(max_new_tokens=16)
    requests = [hippo.Request([{"role": "user", "content": question}], params) for question in questions]
    outputs, alone = llm.generate_many(requests), tiny.generate_many(requests)
    assert [one.token_ids for one in outputs] == [one.token_ids for one in alone]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"draft": "tiny", "drafter": "ngram"}, "there is a draft model and a drafter: leave one of them out"),
        ({"draft": "ngram", "drafter": NGram}, "there is a draft model and a drafter"),
        ({"draft": "ngram", "draft_worker": "process"}, "a drafter without a model does not work in a process"),
        ({"drafter": "nowhere:Any"}, "drafter 'nowhere:Any' does not load"),
        ({"drafter": NGram()}, "NGram' is an object, and every request needs its own"),
    ],
)
def test_what_cannot_be_loaded(options, problem):
    with pytest.raises(BadRequest, match=problem):
        hippo.load("tiny", **options)


@pytest.mark.parametrize(("drafter", "kept"), [("ngram", True), (lambda: NGram(), False)])
def test_costs_are_kept_of_a_drafter_that_has_a_name(drafter, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("HIPPO_STATE", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with hippo.load("tiny", drafter=drafter) as loaded:
        draft = loaded.pair.draft
        draft.worker()
        draft.costs.saw_target(1, 0.1, both=False)
        draft.costs.saw_draft(0.001, both=False)
        draft.acceptance = 0.25
    assert bool(list(tmp_path.rglob("*.json"))) == kept
    with hippo.load("tiny", drafter=drafter) as again:
        assert (again.pair.draft.acceptance == 0.25) == kept
    assert state.read("pair", {}) is None


def test_models_in_memory():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    try:
        drafts = []
        for drafter in ("ngram", NGram, NGram):
            output = hippo.generate(target, None, request, drafter=drafter, max_new_tokens=24)
            assert output.token_ids == generated(target, request)
            drafts.append(hippo.llm._drafts[target][1])
        assert output.stats.drafter == "hippo.draft.ngram:NGram"
        assert drafts[0] is not drafts[1] is drafts[2], "the same drafter keeps what it has learnt"
        with pytest.raises(BadRequest, match="a draft model and a drafter"):
            hippo.generate(target, model("qwen2_5_vl", 7, 1), request, drafter="ngram")
    finally:
        release(target)


def test_plug_ins_of_the_current_folder_by_the_command_line(tmp_path):
    """With -P, Python itself would not look there."""
    (tmp_path / "mine.py").write_text(
        "class Same:\n"
        "    def commit(self, tokens): self.last = tokens[-1]\n"
        "    def propose(self, count): return [self.last]\n"
    )
    main = "from hippo.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", main, "caption", str(CLIP), "--max-new-tokens", "6"]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, "--drafter", "mine:Same"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3 and "none pruned: mine:Same has no model" in done.stderr
