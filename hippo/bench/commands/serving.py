"""hippo bench chat, throughput and batch: what the engine brings."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from hippo.bench.commands.speed import questions_of
from hippo.cli import common


def chat(
    context: Annotated[str, typer.Option(help="Video tokens of a clip; several by commas.")] = "512,8192",
    runs: Annotated[int, typer.Option(min=1, help="Clips for each; one more warms up.")] = 1,
    max_new_tokens: common.TokensOption = 32,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    attn_implementation: common.AttentionOption = None,
    json: common.JsonOption = False,
) -> None:
    """Ask ten questions of one clip with and without what is kept from one to the next: time to the first token of the
    second question, and the time of all ten.

    Exit code 1 if a token differs.
    """
    common.require_draft(target, draft)
    with common.importing():
        from hippo.bench.serving import chat_study

    results = []
    with (
        common.loaded(target, draft, cache_memory=None, attn_implementation=attn_implementation) as kept,
        common.loaded(target, draft, attn_implementation=attn_implementation) as plain,
        common.progressing() as progress,
    ):
        for number in context.split(","):
            results.append(chat_study(kept, plain, int(number), runs, max_new_tokens, progress))
    if json:
        common.print_json({"rows": results})
    else:
        common.say("| video tokens | first token, 1st question | 2nd | 2nd over 1st | ten questions | identical |\n")
        common.say("| --- | --- | --- | --- | --- | --- |\n")
        for row in results:
            times = [f"{1000 * median(row[name]):.0f} ms" for name in ("first_seconds", "second_seconds")]
            cells = [*times, _spread(row["second_over_first"]), _spread(row["gain_of_ten"], "x")]
            common.say(f"| {row['video_tokens']} | {' | '.join(cells)} | {'yes' if row['identical'] else 'NO'} |\n")
    if not all(row["identical"] for row in results):
        raise typer.Exit(1)


def throughput(
    concurrency: Annotated[str, typer.Option(help="Requests at once; several by commas.")] = "1,2,4,8",
    methods: Annotated[
        str, typer.Option(help="Several by commas: ar, sd, pearl, hippo, serial, parallel, groups.")
    ] = "ar,serial,groups,parallel,hippo",
    runs: Annotated[int, typer.Option(min=1, help="Times that all of it is repeated.")] = 1,
    context: Annotated[int, typer.Option(min=64, help="Video tokens of a clip.")] = 512,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts, one a line, to be asked without a video in place of clips.")
    ] = None,
    max_new_tokens: common.TokensOption = 96,
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    attn_implementation: common.AttentionOption = None,
    json: common.JsonOption = False,
) -> None:
    """Describe different clips, so many at once: tokens a second end to end, latencies, and the time to the first token
    of a request that arrives while 7 others decode. Or answer prompts.

    serial is in turns, in one group of requests; groups is in turns, in two. Other methods choose. A speed is the
    median of the runs, and so is its ratio to the first method in the same run.

    Exit code 1 if a token depends on how many are served at once.
    """
    common.require_draft(target, draft)
    with common.importing():
        from hippo.bench.serving import arrival_study, throughput_study

    numbers, names = [int(number) for number in concurrency.split(",")], methods.split(",")
    asked = questions_of(prompts)
    with (
        common.loaded(target, draft, attn_implementation=attn_implementation) as llm,
        common.progressing() as progress,
    ):
        rows = throughput_study(llm, numbers, names, context, max_new_tokens, runs, progress, asked)
        arrival = None if asked else arrival_study(llm, 7, context, max_new_tokens, 3)
    same = all(row["identical"] for row in rows)
    if json:
        common.print_json({"rows": rows, "arrival": arrival})
    else:
        _print(rows, arrival)
    if not same:
        raise typer.Exit(1)


def batch(
    clips: Annotated[int, typer.Option(min=1, help="Different clips.")] = 100,
    commands: Annotated[int, typer.Option(min=1, help="Clips that get a command each.")] = 5,
    context: Annotated[int, typer.Option(min=64, help="Video tokens of a clip.")] = 512,
    max_new_tokens: common.TokensOption = 96,
    json: common.JsonOption = False,
) -> None:
    """Describe clips with the bundled pair by a batch job, by a loop over `llm.generate`, and by a command each.

    Exit code 1 if a text differs.
    """
    with common.importing():
        from hippo.bench.serving import batch_study

    with common.loaded("tiny", None) as llm, common.progressing() as progress:
        found = batch_study(llm, clips, context, max_new_tokens, commands, progress)
    if json:
        common.print_json(found)
    else:
        mine = found["batch"]
        beside = {"batch": mine, "loop": mine, "commands": [median(mine)] * len(found["commands"])}
        common.say("| way | seconds a clip | a minute | batch over it | identical |\n| --- | --- | --- | --- | --- |\n")
        for name, short in beside.items():
            gains = _spread([one / other for one, other in zip(found[name], short, strict=True)], "x")
            words, seconds = "yes" if found["identical"] else "NO", median(found[name])
            cells = [name, f"{seconds:.3f}", f"{60 / seconds:.0f}", gains, words]
            common.say(f"| {' | '.join(cells)} |\n")
    if not found["identical"]:
        raise typer.Exit(1)


def _print(rows: list[dict[str, Any]], arrival: dict[str, list[float]] | None) -> None:
    one: dict[str, float] = {}
    columns = f"over one | over {rows[0]['method']} | first token, median (95th) | last (95th) | rounds | identical"
    common.say(f"| method | at once | tokens a second | {columns} |\n{'| --- ' * 9}|\n")
    for row in rows:
        speed, rounds = row["tokens_per_second"], row["rounds"]
        gain = speed / one.setdefault(row["method"], speed)
        first = f"{row['first_token_median']:.2f} s ({row['first_token_95th']:.2f})"
        last = f"{row['latency_median']:.2f} s ({row['latency_95th']:.2f})"
        ways = sorted(rounds, key=lambda way: -rounds[way])
        shares = ", ".join(f"{way} {100 * rounds[way] / sum(rounds.values()):.0f} %" for way in ways)
        cells = [
            row["method"],
            str(row["concurrency"]),
            f"{speed:.0f}",
            f"{gain:.2f}x",
            _spread(row["over_first"], "x"),
        ]
        common.say(f"| {' | '.join([*cells, first, last, shares])} | {'yes' if row['identical'] else 'NO'} |\n")
    if arrival is None:
        return
    alone, beside = (median(arrival[name]) for name in ("alone", "beside"))
    common.say(f"\nfirst token alone {alone:.2f} s, while 7 decode {beside:.2f} s: {beside / alone:.1f} times\n")


def _spread(values: list[float], unit: str = "") -> str:
    return f"{median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"
