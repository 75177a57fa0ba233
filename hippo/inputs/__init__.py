"""From a video and a question to what the models take."""

from hippo.inputs.prepare import prepare

__all__ = ["prepare"]
