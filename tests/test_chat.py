"""A conversation says what the same messages say without a cache."""

import pytest

import hippo
from hippo.cli.common import BUNDLED

CLIP = BUNDLED / "demo.mp4"
QUESTIONS = ("What happens?", "Describe the video in detail.", "Where is the red cross at the end?")


@pytest.fixture(scope="module")
def llm():
    with hippo.load("tiny") as pair:
        yield pair


@pytest.fixture(scope="module")
def uncached():
    with hippo.load("tiny", cache_memory=0) as pair:
        yield pair


def test_a_conversation_is_its_messages(llm, uncached):
    chat = llm.open(CLIP, max_new_tokens=12)
    for number, question in enumerate(QUESTIONS):
        output = chat.ask(question)
        turns = chat.messages[:-1]
        assert output.token_ids == uncached.generate(messages=turns, max_new_tokens=12).token_ids
        assert (output.stats.cached_tokens > 500) == (number > 0)
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant"] * 3


def test_a_rewound_question_was_never_asked(llm):
    chat = llm.open(CLIP, max_new_tokens=12)
    first = chat.ask(QUESTIONS[0])
    second = chat.ask(QUESTIONS[1])
    chat.rewind()
    assert len(chat.messages) == 2
    assert chat.ask(QUESTIONS[1]).token_ids == second.token_ids
    chat.rewind(2)
    assert chat.messages == [] and chat.ask(QUESTIONS[0]).token_ids == first.token_ids
    with pytest.raises(hippo.BadRequest, match="1 questions were asked"):
        chat.rewind(2)


def test_an_answer_that_is_left_was_not_given(llm):
    chat = llm.open(CLIP, max_new_tokens=12)
    stream = chat.stream(QUESTIONS[0])
    next(iter(stream))
    stream.close()
    assert chat.messages == []


def test_an_answer_that_was_closed_was_not_given_though_it_is_read_to_its_end(llm):
    chat = llm.open(CLIP, max_new_tokens=12)
    stream = chat.stream(QUESTIONS[0])
    for _ in stream:
        stream.close()
    assert chat.messages == []


def test_a_refused_question_leaves_the_chat_usable(llm, monkeypatch):
    chat = llm.open(CLIP, max_new_tokens=8)
    chat.ask(QUESTIONS[0])
    text = llm.pair.target.config.get_text_config()
    with monkeypatch.context() as context:
        context.setattr(text, "max_position_embeddings", 560)
        with pytest.raises(hippo.BadRequest, match="context 560"):
            chat.ask("Why? " * 60)
    with pytest.raises(hippo.BadRequest, match="empty"):
        chat.ask("  ")
    assert len(chat.messages) == 2 and chat.ask(QUESTIONS[1]).text


def test_two_chats_about_one_video(llm, uncached):
    chats = [llm.open(CLIP, max_new_tokens=10) for _ in range(2)]
    streams = [chat.stream(question) for chat, question in zip(chats, QUESTIONS, strict=False)]
    pieces = [iter(stream) for stream in streams]
    for each in (*pieces, *pieces):
        next(each, None)
    for each, chat, question in zip(pieces, chats, QUESTIONS, strict=False):
        list(each)
        said = uncached.generate(CLIP, question, max_new_tokens=10).text
        assert chat.messages[-1]["content"][0]["text"] == said
