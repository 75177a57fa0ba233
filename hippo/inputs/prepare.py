"""Chat template, processor and true timestamps: a video and a question become model inputs."""

from __future__ import annotations

from typing import Any

import torch

from hippo.errors import HippoError
from hippo.video import Video


def prepare(processor: Any, video: Video, prompt: str) -> dict[str, Any]:
    """Inputs for one video and one user turn, as the processor's own chat template lays them out.

    The video comes before the question, and the processor is told not to sample again: the frames and their times are
    those of `video`. Returns the processor's output as a plain dict of tensors, batch of one. Raises HippoError.
    """
    for token in (getattr(processor, "video_token", None), getattr(processor, "image_token", None)):
        if token and token in prompt:
            raise HippoError(
                f"the prompt holds the model's own marker {token}", "leave it out: the video's place is known"
            )
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    try:
        return dict(
            processor(
                text=[text],
                videos=[video.frames],
                video_metadata=[video.metadata],
                do_sample_frames=False,
                return_tensors="pt",
            )
        )
    except ValueError as error:
        raise HippoError(f"the model's processor refuses the video ({error})", "cut or scale the clip") from None


def on_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same inputs with their tensors on `device`."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
