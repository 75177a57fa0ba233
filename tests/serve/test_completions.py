"""/v1/completions: a text goes on as the target's own generate() continues it."""

import httpx2
import pytest
import torch
from openai import BadRequestError

PROMPT = "The video shows two objects on a"


def test_a_text_is_continued_as_generate_does(client, llm):
    inputs = llm.processor.tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        ids = llm.pair.target.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs.input_ids.shape[1] :]
    expected = llm.processor.tokenizer.decode(ids, skip_special_tokens=True)
    for prompt in (PROMPT, [PROMPT]):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=20)
        assert answer.choices[0].text == expected and answer.object == "text_completion"
        assert answer.usage.prompt_tokens == inputs.input_ids.shape[1]
        assert answer.usage.completion_tokens == len(ids)


def test_a_stream_has_the_same_words_and_ends_with_its_reason(client):
    asked = dict(model="tiny", prompt=PROMPT, temperature=4, seed=1)
    whole = client.completions.create(**asked)
    assert whole.usage.completion_tokens == 16 and whole.choices[0].finish_reason == "length"
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert not last.choices and last.usage.completion_tokens == 16


def test_several_answers_and_stop_strings(client):
    sampled = dict(model="tiny", prompt=PROMPT, max_tokens=8, temperature=1.0, seed=3)
    texts = [choice.text for choice in client.completions.create(n=3, **sampled).choices]
    assert texts[0] == client.completions.create(**sampled).choices[0].text and len(texts) == 3
    whole = client.completions.create(model="tiny", prompt=PROMPT).choices[0].text
    cut = whole.split()[2]
    (choice,) = client.completions.create(model="tiny", prompt=PROMPT, stop=cut).choices
    assert choice.text == whole[: whole.index(cut)] and choice.finish_reason == "stop" and choice.stop_reason == cut


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"echo": True}, "echo is not supported"),
        ({"suffix": "end"}, "suffix is not supported"),
        ({"best_of": 2}, "best_of is not supported"),
        ({"logprobs": 1}, "logprobs is not supported"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "<|video_pad|>"}, "the model's own marker"),
        ({"n": 2}, "n above 1 needs a temperature"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"extra_body": {"media_io_kwargs": {"video": {"fps": 1}}}}, "media_io_kwargs is not supported here"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client, llm, fields, words):
    if fields.get("prompt") == "<|video_pad|>":
        fields = {"prompt": f"a {llm.processor.video_token}"}
    with pytest.raises(BadRequestError, match=words):
        client.completions.create(**{"model": "tiny", "prompt": PROMPT} | fields)


def test_what_asks_for_nothing_is_taken(url):
    body = {"prompt": PROMPT, "max_tokens": 2, "echo": False, "suffix": None, "best_of": 1, "logprobs": None}
    assert httpx2.post(f"{url}/v1/completions", json=body).status_code == 200
