"""How much sooner? Every method beside transformers' generate(), in turn, in one run: medians and spread.

    python bench/speed.py --runs 5                     # the bundled pair on the demo clip
    python bench/speed.py --target A --draft B --video clip.mp4

Rows are our decoders; "wrong draft" is the parallel decoder with a draft whose proposals are all wrong.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

import hippo
from hippo.checkpoints import BUNDLED
from hippo.cli.demo import CLIP
from hippo.families import family_of
from hippo.forward import CachedModel
from hippo.keep import pruner_named, signals_of
from hippo.llm import DEFAULT_PROMPT, VideoLLM
from hippo.options import make_options
from hippo.report.baseline import transformers_generate

METHODS: dict[str, dict[str, Any]] = {
    "ar": {"method": "ar"},
    "sd": {"method": "sd"},
    "serial + hippo": {"decoder": "serial", "pruner": "hippo"},
    "pearl": {"method": "pearl"},
    "hippo": {"method": "hippo"},
}


def always_wrong(draft: Path, folder: str) -> str:
    """A copy of a draft that proposes its least likely token instead of its most likely one."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(draft)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    transformers.AutoProcessor.from_pretrained(draft).save_pretrained(folder)
    return folder


def measure(llm: VideoLLM, wrong: VideoLLM, clip: Path, runs: int, tokens: int) -> list[dict[str, Any]]:
    """Rows of medians; each run times generate() and then every method once."""
    plans = [(name, llm, options) for name, options in METHODS.items()] + [("wrong draft", wrong, {"method": "hippo"})]
    samples: dict[str, list[Any]] = {name: [] for name, _, _ in plans}
    baselines = []
    for run in range(runs + 1):  # the first warms up
        baseline = transformers_generate(llm, str(clip), DEFAULT_PROMPT, make_options(max_new_tokens=tokens))
        for name, pair, options in plans:
            output = pair.generate(clip, **options, max_new_tokens=tokens)
            if run:
                samples[name].append(output)
        if run:
            baselines.append(baseline)
    rows = []
    for name, outputs in samples.items():
        stats = outputs[-1].stats
        end_to_end = [b.total / o.stats.seconds.total for b, o in zip(baselines, outputs, strict=True)]
        decode = [b.decode / o.stats.seconds.decode for b, o in zip(baselines, outputs, strict=True)]
        ours = [a.stats.seconds.total / o.stats.seconds.total for a, o in zip(samples["ar"], outputs, strict=True)]
        scoring = [o.stats.seconds.scoring / o.stats.seconds.prefill for o in outputs]
        rows.append(
            {
                "method": name,
                "new_tokens": stats.new_tokens,
                "seconds": median(o.stats.seconds.total for o in outputs),
                "end_to_end": [median(end_to_end), min(end_to_end), max(end_to_end)],
                "decode": [median(decode), min(decode), max(decode)],
                "end_to_end_vs_our_ar": [median(ours), min(ours), max(ours)],
                "tokens_per_target_forward": stats.tokens_per_target_forward,
                "acceptance_rate": stats.acceptance_rate,
                "gamma": stats.gamma,
                "scoring_share_of_prefill": median(scoring),
                "identical": all(o.token_ids == b.token_ids for o, b in zip(outputs, baselines, strict=True)),
            }
        )
    return rows


def step_costs(llm: VideoLLM, draft: Any, clip: Path, steps: int = 60) -> list[dict[str, Any]]:
    """Seconds of one decode step of each model after the clip's prompt, one thread each,
    the draft with a tenth of the video tokens; our forwards, and transformers' own."""
    inputs, threads = llm.inputs(clip), torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for name, may_fuse in (("ours", True), ("transformers", False)):
            seconds = {
                role: step_seconds(model, inputs, may_fuse, share, steps)
                for role, model, share in (("target", llm.pair.target, 1.0), ("draft", draft, 0.1))
            }
            rows.append({"forward": name, **seconds, "ratio": seconds["target"] / seconds["draft"]})
    finally:
        torch.set_num_threads(threads)
    return rows


@torch.no_grad()
def step_seconds(model: Any, inputs: dict[str, Any], may_fuse: bool, share: float, steps: int) -> float:
    """The median decode step of one model that sees this share of the video tokens."""
    family = family_of(model)
    prompt, embeds = family.place(model, inputs), family.embed(model, inputs)
    kept = pruner_named("uniform").keep_all_of(signals_of(prompt, embeds.tokens[prompt.video_at], None), share)
    stays = prompt.keep(kept)
    cached = CachedModel.of(family, model, may_fuse=may_fuse)
    cached.prefill(embeds[stays], prompt.positions[:, stays], prompt.next_position)
    seconds = []
    for _ in range(steps):
        cached.extend([0])
        seconds.append(cached.seconds)
    return median(seconds[steps // 4 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=str(BUNDLED / "tiny" / "target"))
    parser.add_argument("--draft", default=str(BUNDLED / "tiny" / "draft"))
    parser.add_argument("--video", type=Path, default=CLIP)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        bad = always_wrong(args.draft, folder)
        with hippo.load(args.target, args.draft) as llm, hippo.load(args.target, bad) as wrong:
            rows = measure(llm, wrong, args.video, args.runs, args.max_new_tokens)
            draft = transformers.AutoModelForImageTextToText.from_pretrained(args.draft, dtype=llm.pair.target.dtype)
            steps = step_costs(llm, draft.eval(), args.video)
    if args.json:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        print(json.dumps({"rows": rows, "steps": steps, **versions}, indent=1))
        return
    print("| method | tokens | end to end vs generate() | decode vs generate() | vs our ar | tokens a target forward "
          "| acceptance | gamma | scoring / prefill | identical |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        speeds = [
            "{:.2f}x ({:.2f} to {:.2f})".format(*row[k]) for k in ("end_to_end", "decode", "end_to_end_vs_our_ar")
        ]
        cells = [
            row["method"],
            str(row["new_tokens"]),
            *speeds,
            f"{row['tokens_per_target_forward']:.2f}",
            f"{row['acceptance_rate']:.1%}",
            f"{row['gamma']:.1f}",
            f"{row['scoring_share_of_prefill']:.1%}",
            "yes" if row["identical"] else "NO",
        ]
        print("| " + " | ".join(cells) + " |")
    print("\n| one decode step | target | draft, a tenth of the video | ratio |\n| --- | --- | --- | --- |")
    for row in steps:
        print(f"| {row['forward']} | {1e3 * row['target']:.2f} ms | {1e3 * row['draft']:.2f} ms | {row['ratio']:.1f} |")


if __name__ == "__main__":
    main()
