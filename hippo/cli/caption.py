"""hippo caption: describe or question a video."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hippo.cli import common
from hippo.keep import PRUNERS
from hippo.llm import DEFAULT_PROMPT
from hippo.options import make_options


def caption(
    videos: common.SourcesArgument,
    prompt: common.PromptOption = DEFAULT_PROMPT,
    system: common.SystemOption = "",
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    method: Annotated[
        str, typer.Option(help="ar, sd (serial), pearl (parallel) or hippo (parallel, pruned).")
    ] = "hippo",
    decoder: Annotated[str, typer.Option(help="ar, serial or parallel, instead of the method's own.")] = "",
    pruner: Annotated[str, typer.Option(help=f"Instead of the method's own: {', '.join(PRUNERS)}.")] = "",
    keep_ratio: common.KeepOption = 0.1,
    gamma: common.GammaOption = "auto",
    max_new_tokens: common.TokensOption = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy: the most likely token every time.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens only; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens that reach this mass.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer at this string; may be repeated.")] = None,
    frames: common.FramesOption = None,
    fps: common.FpsOption = None,
    max_video_tokens: common.VideoTokensOption = None,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    draft_timeout: common.TimeoutOption = 20.0,
    draft_worker: common.WorkerOption = "auto",
    draft_device: common.DraftDeviceOption = "auto",
    trust_remote_code: common.TrustOption = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also run transformers' generate() and compare.")] = False,
    json: common.JsonOption = False,
) -> None:
    """Describe a video, or answer a question about one or several. The words go to stdout as they are accepted.

    hippo caption clip.mp4

    hippo caption clip.mp4 -p "What does the red circle do?" --compare

    hippo caption before.mp4 after.mp4 photo.jpg -p "What differs?" --system "Answer in one sentence."

    hippo caption clip.mp4 --target Qwen/Qwen2.5-VL-7B-Instruct --draft Qwen/Qwen2.5-VL-3B-Instruct
    """
    options: dict[str, Any] = {
        "method": method,
        "decoder": decoder,
        "pruner": pruner,
        "keep_ratio": keep_ratio,
        "gamma": common.parse_gamma(gamma),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or (),
    }
    drafts = make_options(**options).decoder != "ar"  # and a wrong option is told before models are loaded
    if drafts:
        common.require_draft(target, draft)
    request = common.request_of(videos, prompt, system, frames, fps, max_video_tokens)
    where: dict[str, Any] = {"draft_timeout": draft_timeout, "draft_worker": draft_worker, "draft_device": draft_device}
    with common.loaded(target, draft, device, dtype, drafts, trust_remote_code=trust_remote_code, **where) as llm:
        with common.answering() as (on_text, progress):
            output = llm.generate(**request, **options, on_text=None if json else on_text, progress=progress)
        if not json:
            common.say("\n")
        comparison = common.compare(llm, request, options, 1, output) if compare else None
        common.close(output, comparison, json)
