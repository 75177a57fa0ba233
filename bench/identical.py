"""Is it lossless, and sooner on other clips than the demo's? Each method against transformers' generate().

python bench/identical.py --first-seed 90001 --clips 20
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

import transformers

import hippo
from hippo.cli.demo import CLIP
from hippo.llm import DEFAULT_PROMPT
from hippo.options import METHODS, make_options
from hippo.report.baseline import transformers_generate
from hippo.world import make_scene, score, write_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-seed", type=int, default=90001)
    parser.add_argument("--clips", type=int, default=20)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    same, runs = 0, 0
    speedups: dict[str, list[float]] = {method: [] for method in METHODS}
    with hippo.load("tiny") as llm, tempfile.TemporaryDirectory() as folder:
        llm.generate(CLIP)  # warms up
        for seed in range(args.first_seed, args.first_seed + args.clips):
            clip = Path(folder) / f"{seed}.mp4"
            write_clip(make_scene(seed), clip)
            expected = transformers_generate(llm, str(clip), DEFAULT_PROMPT, make_options())
            outputs = {method: llm.generate(clip, method=method) for method in METHODS}
            for method, output in outputs.items():
                speedups[method].append(expected.total / output.stats.seconds.total)
            verdicts = {method: output.token_ids == expected.token_ids for method, output in outputs.items()}
            same, runs = same + sum(verdicts.values()), runs + len(verdicts)
            stats, right = outputs["hippo"].stats, score(expected.text, make_scene(seed)).shares()
            print(
                f"{seed}: {stats.new_tokens} tokens, {stats.tokens_per_target_forward:.2f} a target forward, "
                + ", ".join(f"{method} {'identical' if ok else 'DIFFERS'}" for method, ok in verdicts.items())
                + f"; motion {right.get('motion', 1):.0%} right",
                flush=True,
            )
    print(f"{same} of {runs} answers identical to generate()")
    for method, ratios in speedups.items():
        print(f"{method}: end to end {median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) over the clips")


if __name__ == "__main__":
    main()
