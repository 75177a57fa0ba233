"""/v1/responses, by OpenAI's client."""

import httpx2
import pytest

from tests.serve.conftest import QUESTION, URL

CLIP = [{"type": "input_video", "video_url": URL}, {"type": "input_text", "text": QUESTION}]
ASKED = [{"role": "user", "content": CLIP}]


def test_the_words_are_the_librarys(client, expected):
    answer = client.responses.create(model="tiny", input=ASKED)
    assert answer.output_text == expected.text and answer.status == "completed"
    assert answer.usage.output_tokens == len(expected.token_ids) and answer.usage.speculative["accepted"] > 0


def test_a_stream_of_events(client, expected):
    events = list(client.responses.create(model="tiny", input=ASKED, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected.text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert events[-1].response.output_text == expected.text


def test_an_answer_cut_short_is_incomplete(client):
    answer = client.responses.create(model="tiny", input="Hello", instructions="Be brief.", max_output_tokens=2)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    *_, last = client.responses.create(model="tiny", input="Hello", max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": 3}, "input"),
        ({"input": [{"type": "function_call"}]}, "function_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input_file"),
        ({"input": [{"role": "user", "content": [{"type": "input_video", "video_url": "file:///x"}]}]}, "may not be"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"max_tokens": 3}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools is not supported"),
    ],
)
def test_what_is_wrong_is_said_by_name(url, change, words):
    answer = httpx2.post(f"{url}/v1/responses", json={"input": "x"} | change, timeout=60)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
