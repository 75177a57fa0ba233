"""From videos, images and words to what the models take."""

from hippo.inputs.chat import Messages, Source, messages_of, open_messages, parts_of, read_messages
from hippo.inputs.fit import Budget, read_fitting, room_for
from hippo.inputs.memory import MediaMemory, media_key
from hippo.inputs.options import MediaKeys, MediaOptions, split_options
from hippo.inputs.prepare import on_device, prepare, prepare_text
from hippo.inputs.sources import kind_of, stored

__all__ = [
    "Budget",
    "MediaKeys",
    "MediaMemory",
    "MediaOptions",
    "Messages",
    "Source",
    "kind_of",
    "media_key",
    "messages_of",
    "on_device",
    "open_messages",
    "parts_of",
    "prepare",
    "prepare_text",
    "read_fitting",
    "read_messages",
    "room_for",
    "split_options",
    "stored",
]
