"""hippo bench identical: is it lossless, clip after clip?"""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Annotated

import typer

from hippo.cli import common


def identical(
    first_seed: Annotated[int, typer.Option(min=0, help="The first clip's seed.")] = 90001,
    clips: Annotated[int, typer.Option(min=1, help="How many clips of the procedural world.")] = 20,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
    json: common.JsonOption = False,
) -> None:
    """Describe clips by every method and by transformers' generate(): the same words, and how much faster?

    Exit code 1 if a single token differs.
    """
    seen = []
    with common.loaded(
        target, draft, trust_remote_code=trust_remote_code, attn_implementation=attn_implementation
    ) as llm:
        from hippo.bench.identical import verdicts
        from hippo.params import METHODS

        for verdict in verdicts(llm, range(first_seed, first_seed + clips), list(METHODS)):
            seen.append(verdict)
            said = ", ".join(f"{name} {'identical' if same else 'DIFFERS'}" for name, same in verdict.identical.items())
            if not json:
                common.say(
                    f"{verdict.seed}: {verdict.tokens} tokens, "
                    f"{verdict.tokens_per_target_forward:.2f} a target forward, {said}\n"
                )
    same = [one for verdict in seen for one in verdict.identical.values()]
    if json:
        common.print_json({"clips": [asdict(verdict) for verdict in seen], "identical": all(same)})
    else:
        common.say(f"{sum(same)} of {len(same)} answers identical to generate()\n")
        for name in METHODS:
            ratios = [verdict.speedup[name] for verdict in seen]
            common.say(
                f"{name}: end to end {median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) over the clips\n"
            )
    if not all(same):
        raise typer.Exit(1)
