"""hippo caption: describe or question videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hippo.cli import common

if TYPE_CHECKING:
    from hippo.llm import VideoLLM


def caption(
    videos: common.SourcesArgument,
    prompt: common.PromptOption = common.DEFAULT_PROMPT,
    system: common.SystemOption = "",
    together: common.TogetherOption = False,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    drafter: common.DrafterOption = None,
    method: common.MethodOption = "hippo",
    decoder: Annotated[str, typer.Option(help="ar, serial, parallel or auto, instead of the method's own.")] = "",
    pruner: Annotated[
        str, typer.Option(help=f"Instead of the method's own: {common.PRUNERS}; or MODULE:FUNCTION.")
    ] = "",
    keep_ratio: common.KeepOption = "auto",
    keep_at_most: common.KeepAtMostOption = 1.0,
    gamma: common.GammaOption = "auto",
    verify_width: common.WidthOption = "auto",
    max_new_tokens: common.TokensOption = 256,
    temperature: common.TemperatureOption = 0.0,
    top_k: common.TopKOption = 0,
    top_p: common.TopPOption = 1.0,
    min_p: Annotated[
        float | None, typer.Option(help="Sample among tokens at least this fraction as likely as the likeliest.")
    ] = None,
    repetition_penalty: common.RepetitionOption = None,
    seed: common.SeedOption = None,
    stop: common.StopOption = None,
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    start: common.StartOption = None,
    end: common.EndOption = None,
    max_pixels: common.PixelsOption = None,
    max_video_tokens: common.VideoTokensOption = None,
    no_fetch: common.NoFetchOption = False,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    draft_timeout: common.TimeoutOption = 20.0,
    draft_worker: common.WorkerOption = "auto",
    draft_bits: common.BitsOption = "auto",
    draft_device: common.DraftDeviceOption = "auto",
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also run transformers' generate() and compare.")] = False,
    json: common.JsonOption = False,
) -> None:
    """Describe videos, or answer a question about them. The words go to stdout as they are accepted.

    Several clips are several answers, each under a line "==> CLIP <=="; --together asks about all of them at once.
    With --json each answer is one line, with its clip as "video" (or "videos"). An error in one of several clips is a
    line on stderr, and exit code 2 at the end.

    hippo caption clip.mp4

    hippo caption clip.mp4 -p "What does the red circle do?" --compare

    hippo caption before.mp4 after.mp4 photo.jpg --together -p "What differs?" --system "Answer in one sentence."

    hippo caption film.mp4 --start 5400 --end 5460 --max-pixels 100000

    cat clip.mp4 | hippo caption -

    hippo caption clip.mp4 --target Qwen/Qwen2.5-VL-7B-Instruct --draft Qwen/Qwen2.5-VL-3B-Instruct
    """
    requests = common.Requests("caption", locals())

    def answer(llm: VideoLLM, request: dict[str, Any], clips: list[str]) -> None:
        if requests.several and not json:  # as `head` does
            common.say("\n" * (clips is not requests.groups[0]) + f"==> {clips[0]} <==\n")
        with common.answering() as (on_text, progress):
            words = None if json else on_text
            output = llm.generate(**request, **requests.options, on_text=words, progress=progress)
        if not json:
            common.say("\n")
        comparison = common.compare(llm, request, requests.options, 1, output) if compare else None
        common.close(output, comparison, json, clips)

    requests.run(answer)
