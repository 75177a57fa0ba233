"""The model of lmms-eval without weights: what it asks of the engine, and what it makes of the answers."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from hippo.errors import BadRequest, MediaError
from hippo.request import Output
from hippo.stats import Stats

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms")
from lmms_eval.api.instance import Instance
from lmms_eval.models.model_utils import gen_metrics

from hippo.lmms import model as module
from hippo.lmms.model import Hippo


class Engine:
    """Answers each request with its words; "broken" in them is an error."""

    def __init__(self, *given, **options):
        self.given, self.options, self.asked, self.closed = given, options, [], False

    def as_completed(self, requests):
        asked = list(requests)
        self.asked += asked
        for index in reversed(range(len(asked))):
            words = asked[index].messages[-1]["content"][-1]["text"]
            if "broken" in words:
                yield index, MediaError("no such clip")
            elif "bug" in words:
                yield index, ZeroDivisionError()
            else:
                stats = Stats(new_tokens=5, target_forwards=2, checked=4, accepted=3, prompt_tokens=9)
                yield index, Output(f"answer to {words}", [1, 2, 3, 4, 5], stats, ("scaled down",))

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """No model is loaded, and metrics of earlier tests are forgotten."""
    monkeypatch.setattr(module, "load", Engine)
    gen_metrics.reset_logged_metrics()


def instances(model, *questions, task="film", **options):
    """Requests as lmms-eval makes them. questions: pairs of a video and words."""

    def messages(document):
        video, words = document
        return [{"role": "user", "content": [{"type": "video", "url": video}, {"type": "text", "text": words}]}]

    model.task_dict[task] = {"test": questions}
    return [
        Instance(
            request_type="generate_until",
            arguments=(words, messages, {"until": ["\n\n"]} | options, number, task, "test"),
            idx=0,
            metadata={"task": task, "doc_id": number, "repeats": 1},
        )
        for number, (_, words) in enumerate(questions)
    ]


def test_requests_on_one_video_follow_each_other_and_answers_keep_their_order():
    model = Hippo()
    questions = [("b.mp4", "one"), ("a.mp4", "two"), ("b.mp4", "three"), ("a.mp4", "four")]
    requests = instances(model, *questions) + instances(model, ("a.mp4", "five"), task="other")
    answers = model.generate_until(requests)
    assert [one.text for one in answers] == [f"answer to {words}" for words in ("one", "two", "three", "four", "five")]
    assert answers[0].token_counts.to_dict() == {"input_tokens": 9, "output_tokens": 5}
    asked = [request.messages[0]["content"] for request in model.llm.asked]
    assert [content[0]["video"] for content in asked] == ["b.mp4", "b.mp4", "a.mp4", "a.mp4", "a.mp4"]
    assert asked[1] == [{"type": "video", "video": "b.mp4"}, {"type": "text", "text": "three"}]


def test_counts_are_logged_for_each_task():
    model = Hippo()
    questions = [("a.mp4", "one"), ("a.mp4", "broken")]
    model.generate_until(instances(model, *questions) + instances(model, ("a.mp4", "two"), task="other"))
    summary = gen_metrics.summarize_logged_metrics()
    assert summary["total_gen_tokens"] == 10
    expected = {"answered": 1, "failed": 1, "tokens": 5, "forwards": 2, "checked": 4, "accepted": 3}
    assert {name: summary[f"avg_film/{name}"] for name in expected} == expected
    assert summary["avg_other/failed"] == 0


def test_a_failed_request_has_an_empty_answer_and_a_warning():
    model, lines = Hippo(), []
    sink = module.logger.add(lines.append, level="WARNING", format="{message}")
    answers = model.generate_until(instances(model, ("a.mp4", "one"), ("b.mp4", "broken"), ("a.mp4", "two")))
    module.logger.remove(sink)
    assert [one.text for one in answers] == ["answer to one", "", "answer to two"]
    assert [line.strip() for line in lines] == [
        "film, document 1: no such clip",
        "film, document 2, and maybe others: scaled down",
        "1 of 3 requests failed: their answers are empty",
    ]


@pytest.mark.parametrize(("words", "error"), [("broken", MediaError), ("bug", ZeroDivisionError)])
def test_it_raises_if_no_request_is_answered_or_there_is_a_bug(words, error):
    model = Hippo()
    with pytest.raises(error):
        model.generate_until(instances(model, ("a.mp4", words), ("b.mp4", words)))


def test_what_a_task_states_decides_how_its_answers_are_decoded():
    model = Hippo(method="sd", max_new_tokens=99, seed=7)

    def asked(**stated):
        model.generate_until(instances(model, ("a.mp4", "zero"), ("a.mp4", "one"), **stated))
        return model.llm.asked[-1].params

    assert (asked().max_new_tokens, asked(max_new_tokens=16).max_new_tokens) == (99, 16)
    assert asked().stop == () and asked(until=[]).stop == () and asked(until=None).stop == ()
    assert asked(until=["ASSISTANT:"]).stop == ("ASSISTANT:",) and asked(until="Q:").stop == ("Q:",)
    assert asked(do_sample=False, num_beams=1, top_p=1.0, temperature=0).greedy
    assert asked(do_sample=True, top_p=0.5).greedy, "without a temperature, as in lmms-eval's other models"
    sampled = asked(temperature=0.5, top_p=0.9, top_k=None)
    assert (sampled.temperature, sampled.top_p, sampled.top_k, sampled.seed) == (0.5, 0.9, 0, 8)
    assert asked().method == "sd"


def test_model_arguments_reach_the_pair_and_the_requests(tmp_path):
    words = tmp_path / "system.txt"
    words.write_text("Be brief.")
    given = dict(device="cpu", max_running=1, cache_memory=3, frames=4, max_pixels=5000, batch_size=1)
    model = Hippo("target", "draft", str(words), keep_ratio=0.2, max_batch_size=None, **given)
    assert model.llm.given == ("target", "draft")
    expected = {"device": "cpu", "max_running": 1, "cache_memory": 3 << 20, "start_draft": True}
    assert model.llm.options == expected
    model.generate_until(instances(model, ("a.mp4", "one")))
    (request,) = model.llm.asked
    assert request.messages[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert (request.frames, request.media.max_pixels, request.params.keep_ratio) == (4, 5000, 0.2)
    assert Hippo("target", method="ar").llm.options == {"start_draft": False}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_ration": 0.1}, r"unknown model argument 'keep_ration': did you mean keep_ratio\?"),
        ({"methods": "ar"}, r"did you mean method\?"),
        ({"keep_ratio": 2}, "not in"),
        ({"frames": 4, "fps": 2}, "both"),
        ({"pretrained": "target"}, "there is no draft model: name one with draft="),
    ],
)
def test_arguments_are_refused_before_anything_is_loaded(given, message, monkeypatch):
    monkeypatch.setattr(module, "load", None)
    with pytest.raises(BadRequest, match=message):
        Hippo(**given)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadRequest, match="several processes"):
        Hippo()


def test_other_kinds_of_tasks_are_refused():
    model = Hippo()
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(BadRequest, match="generate_until task"):
            ask([])


def test_clean_ends_the_pair():
    model = Hippo()
    engine = model.llm
    model.clean()
    assert engine.closed and not hasattr(model, "llm")


def test_answers_are_offered_to_the_cache_hook():
    model, seen = Hippo(), []
    model.set_cache_hook(SimpleNamespace(add_partial=lambda *what: seen.append(what)))
    model.generate_until(instances(model, ("a.mp4", "one"), max_new_tokens=3))
    assert seen == [("generate_until", ("one", {"until": ["\n\n"], "max_new_tokens": 3}), "answer to one")]


@pytest.mark.parametrize("first", ["lmms_eval.models", "hippo.lmms"])
def test_the_entry_point_imports_next_to_nothing(first):
    code = (
        f"import sys, {first}, lmms_eval.models as models\n"
        "assert models.get_model_manifest('hippo').chat_class_path == 'hippo.lmms.model.Hippo'\n"
        "ours = {name for name in sys.modules if name.startswith('hippo')}\n"
        "assert ours == {'hippo', 'hippo.lmms'}, ours\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
