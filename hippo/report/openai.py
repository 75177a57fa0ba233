"""Answers in the fields of OpenAI's API, for the server and for batch jobs."""

from __future__ import annotations

from typing import Any

from hippo.request import Output


def reason_of(output: Output) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "length" if output.stats.finish == "length" else "stop"


def usage_of(outputs: list[Output]) -> dict[str, Any]:
    """Token counts of the answers to one prompt, with ours: `speculative`."""
    stats = [output.stats for output in outputs]
    prompt, generated = stats[0].prompt_tokens, sum(len(output.token_ids) for output in outputs)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + generated,
        "completion_tokens": generated,
        "prompt_tokens_details": {"cached_tokens": stats[0].cached_tokens, "video_tokens": stats[0].video_tokens},
        "speculative": {
            "accepted": sum(one.accepted for one in stats),
            "drafted": sum(one.checked for one in stats),
            "kept_video_tokens": stats[0].kept_tokens,
            "draft_lost": any(one.draft_lost for one in stats),
        },
    }
