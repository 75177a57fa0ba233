"""Streaming text."""

from hypothesis import given
from hypothesis import strategies as st

from hippo.checkpoints import BUNDLED
from hippo.text import TextStream

_tokenizer = []


def tokenizer():
    if not _tokenizer:
        from transformers import AutoTokenizer

        _tokenizer.append(AutoTokenizer.from_pretrained(BUNDLED / "tiny" / "target"))
    return _tokenizer[0]


@given(st.text(max_size=40), st.integers(1, 5))
def test_pieces_make_up_the_text_and_no_character_is_broken(text, width):
    ids = tokenizer()(text).input_ids
    stream = TextStream(tokenizer())
    pieces = [stream.push(ids[i : i + width]) for i in range(0, len(ids), width)]
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text == tokenizer().decode(ids, skip_special_tokens=True)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_special_tokens_are_not_shown():
    stream = TextStream(tokenizer())
    end = tokenizer().eos_token_id
    assert stream.push(tokenizer()("The red circle").input_ids) + stream.push([end]) == "The red circle"
    assert stream.token_ids[-1] == end
