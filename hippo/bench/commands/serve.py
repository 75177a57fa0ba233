"""hippo bench serve: what clients of a server wait for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from hippo.cli import common
from hippo.errors import BadRequest, HippoError


def serve(
    url: Annotated[
        list[str] | None,
        typer.Option(help="An OpenAI-compatible server; twice: both, in turn. None: ours beside the library."),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Clients at once; several by commas. By default 1,8, and 8 with --minutes.")
    ] = None,
    requests: Annotated[int, typer.Option(min=2, help="Answers for each concurrency and server.")] = 16,
    max_new_tokens: common.TokensOption = 128,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Ask for so long instead: errors, growth of memory, tokens a second."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="By default the first that the server has.")] = None,
    api_key: Annotated[str, typer.Option(envvar="HIPPO_API_KEY", help="Sent to the servers.")] = "",
    json: common.JsonOption = False,
) -> None:
    """Time clients of one server, or of two in turn, with the same clips: to the first token, between tokens, to the
    end, and tokens a second. Each clip is new to the server; a second question about it follows.

    With --minutes, clients ask about a few clips again and again, and what is printed is how the server bears it.

    hippo bench serve

    hippo bench serve --url http://127.0.0.1:8000 --url http://127.0.0.1:8001

    hippo bench serve --minutes 10 --concurrency 8
    """
    numbers = _numbers(concurrency or ("1,8" if minutes is None else "8"))
    if minutes is not None:
        if len(numbers) > 1 or len(url or ()) > 1:
            raise BadRequest("--minutes are of one server and one --concurrency", "name one of each")
        result = _soak(url[0] if url else None, numbers[0], 60 * minutes, max_new_tokens, model, api_key)
        common.print_json(result) if json else common.say(_soaked(result))
        return
    with common.importing():
        from hippo.bench import clients

    if url:
        with ExitStack() as held, common.progressing() as progress:
            subjects = {one: held.enter_context(clients.server(one, model, api_key)) for one in url}
            rows = clients.study(subjects, numbers, requests, max_new_tokens, progress)
    else:
        with (
            common.loaded("tiny", None, cache_memory=None, max_running=max(numbers)) as llm,
            clients.own_server(max(numbers)) as (own, _),
            clients.server(own, None, "") as ask,
            common.progressing() as progress,
        ):
            subjects = {"library": clients.library(llm), "server": ask}
            rows = clients.study(subjects, numbers, requests, max_new_tokens, progress)
    if json:
        common.print_json({"rows": rows})
        return
    common.say(
        "| | at once | first token | 95th | between tokens | whole answer | 95th | tokens a second "
        "| answer's time against the first row's | tokens a second against | same words "
        "| second question's first token, against |\n"
    )
    common.say("| --- " * 12 + "|\n")
    for row in rows:
        common.say("| " + " | ".join(_cells(row)) + " |\n")


def _soak(url: str | None, at_once: int, seconds: float, tokens: int, model: str | None, key: str) -> dict[str, Any]:
    with common.importing():
        from hippo.bench.clients import own_server, server
        from hippo.bench.soak import memory_at, memory_of, soak

    if url is not None:
        with server(url, model, key) as ask, common.progressing() as progress:
            return soak(ask, at_once, seconds, tokens, memory_at(url), None, progress)
    with (
        common.loaded("tiny", None, cache_memory=0, max_running=at_once) as llm,
        own_server(at_once, "--cache-memory", "0") as (own, pid),
        server(own, None, "") as ask,
        common.progressing() as progress,
    ):
        return soak(ask, at_once, seconds, tokens, memory_of(pid), llm, progress)


def _soaked(found: dict[str, Any]) -> str:
    """A soak's result in lines."""
    errors = sum(found["errors"].values())
    lines = [
        f"{found['answers']} answers to {found['concurrency']} clients at once in {found['seconds']:.0f} s",
        f"{errors} errors" + "".join(f"\n  {count}: {what}" for what, count in found["errors"].items()),
        f"the same words for each clip: {'yes' if found['same_texts'] else 'NO'}",
        f"{found['tokens_a_second']:.0f} tokens a second",
    ]
    if found["speed_over_library"] is not None:
        lines[-1] += f", {found['speed_over_library']:.2f} of generate_many's"
    if found["growth"] is None:
        lines.append("memory: not known")
    else:
        first, last = (found[f"memory_{when}_minute"] / (1 << 20) for when in ("first", "last"))
        lines.append(f"memory: {first:.0f} MiB, at the end {last:.0f} MiB ({found['growth']:+.1%})")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    first, between, whole = (row[name] for name in ("first_seconds", "between_seconds", "seconds"))
    return [
        row["subject"],
        str(row["concurrency"]),
        *(f"{1000 * first[name]:.0f} ms" for name in ("median", "p95")),
        f"{1000 * between['median']:.1f} ms",
        *(f"{1000 * whole[name]:.0f} ms" for name in ("median", "p95")),
        f"{row['tokens_a_second']:.0f}",
        f"{row['seconds_over_first']:.2f}x, {1000 * row['more_seconds']:+.0f} ms",
        f"{row['throughput_over_first']:.2f}x",
        "yes" if row["same_texts"] else "NO",
        f"{1000 * row['second_question_first_seconds']['median']:.0f} ms, {row['second_question_over_first']:.2f}x",
    ]


def _numbers(text: str) -> list[int]:
    """Raises HippoError."""
    numbers = [int(one) for one in text.split(",") if one.strip().isdecimal() and int(one) > 0]
    if len(numbers) != len(text.split(",")):
        raise HippoError(f"concurrency {text!r} are no whole numbers above zero", "use 1,8")
    return numbers
