"""From a video and a question to what the models take."""

from hippo.inputs.prepare import on_device, prepare

__all__ = ["on_device", "prepare"]
