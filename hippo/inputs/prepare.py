"""Chat template, processor and true timestamps: a video and a question become model inputs."""

from __future__ import annotations

from typing import Any

from hippo.errors import HippoError
from hippo.video import Video


def prepare(processor: Any, video: Video, prompt: str) -> dict[str, Any]:
    """Inputs for one video and one user turn, as the processor's own chat template lays them out.

    The video comes before the question, and the processor is told not to sample again: the frames and their times are
    those of `video`. Returns the processor's output as a plain dict of tensors, batch of one.
    """
    if getattr(processor, "video_processor", None) is None:
        raise HippoError("this checkpoint's processor takes no video", "use a video-LLM checkpoint")
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    return dict(
        processor(
            text=[text],
            videos=[video.frames],
            video_metadata=[video.metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
    )
