"""From videos, images and words to what the models take."""

from hippo.inputs.chat import Messages, Source, messages_of, open_messages, parts_of, read_messages
from hippo.inputs.fit import read_fitting, room_for
from hippo.inputs.prepare import on_device, prepare

__all__ = [
    "Messages",
    "Source",
    "messages_of",
    "on_device",
    "open_messages",
    "parts_of",
    "prepare",
    "read_fitting",
    "read_messages",
    "room_for",
]
