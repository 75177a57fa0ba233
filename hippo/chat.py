"""A conversation about videos: every question is asked with all that was said before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hippo.engine import Stream
from hippo.errors import BadRequest
from hippo.inputs import messages_of
from hippo.request import Output, Sources

if TYPE_CHECKING:
    from hippo.llm import VideoLLM


class Chat:
    """A conversation. Made by `VideoLLM.open`.

    The engine's prefix cache has what was said and seen before, so a further question reads only its own words. Several
    chats may go on at the same time, also about one video.
    """

    def __init__(self, llm: VideoLLM, video: Sources, system: str = "", **options: Any) -> None:
        self._llm, self._video, self._system, self._options = llm, video, system, options
        self.messages: list[dict[str, Any]] = []

    def ask(self, question: str, **options: Any) -> Output:
        """The answer to a question. options: as of `VideoLLM.generate`, before those of the chat. A question that is
        refused or fails leaves the conversation as it was. Raises HippoError."""
        stream = self.stream(question, **options)
        for _ in stream:
            pass
        return stream.output

    def stream(self, question: str, **options: Any) -> ChatStream:
        """As `ask`, to be iterated for pieces of text. What was said counts once the answer is whole."""
        if not question.strip():
            raise BadRequest("the question is empty", "ask something")
        asked = messages_of(None if self.messages else self._video, question, "" if self.messages else self._system)
        turns = [*self.messages, *asked]
        return ChatStream(self, turns, self._llm.stream(messages=turns, **self._options, **options))

    def rewind(self, questions: int = 1) -> None:
        """Take the last questions and their answers back."""
        asked = [place for place, turn in enumerate(self.messages) if turn["role"] == "user"]
        if not 0 <= questions <= len(asked):
            raise BadRequest(f"{len(asked)} questions were asked", "take back at most so many")
        if questions:
            del self.messages[asked[-questions] :]
        if questions == len(asked):
            self.clear()

    def clear(self) -> None:
        """Begin again, with the same videos and system prompt."""
        self.messages = []


class ChatStream:
    """An answer on its way, see `hippo.Stream`."""

    def __init__(self, chat: Chat, turns: list[dict[str, Any]], stream: Stream) -> None:
        self._chat, self._turns, self._stream = chat, turns, stream

    def __iter__(self) -> Iterator[str]:
        yield from self._stream
        if not self.output.stats.finish:
            return  # it was closed
        said = [{"type": "text", "text": self.output.text}]
        self._chat.messages = [*self._turns, {"role": "assistant", "content": said}]

    @property
    def output(self) -> Output:
        """The answer so far."""
        return self._stream.output

    def close(self) -> None:
        """Stop answering: the question was not asked."""
        self._stream.close()
