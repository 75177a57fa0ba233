"""hippo bench serve: what clients of a server wait for."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hippo.cli import common
from hippo.errors import HippoError


def serve(
    url: Annotated[
        list[str] | None,
        typer.Option(help="An OpenAI-compatible server; twice: both, in turn. None: ours beside the library."),
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Clients at once; several by commas.")] = "1,8",
    requests: Annotated[int, typer.Option(min=2, help="Answers for each concurrency and server.")] = 16,
    max_new_tokens: common.TokensOption = 128,
    model: Annotated[str | None, typer.Option(help="By default the first that the server has.")] = None,
    api_key: Annotated[str, typer.Option(envvar="HIPPO_API_KEY", help="Sent to the servers.")] = "",
    json: common.JsonOption = False,
) -> None:
    """Time clients of one server, or of two in turn, with the same clips: to the first token, between tokens, to the
    end, and tokens a second. Each clip is new to the server.

    hippo bench serve

    hippo bench serve --url http://127.0.0.1:8000 --url http://127.0.0.1:8001
    """
    numbers = _numbers(concurrency)
    with common.importing():
        from hippo.bench import clients

    if url:
        with common.progressing() as progress:
            subjects = {one: clients.server(one, model, api_key) for one in url}
            rows = clients.study(subjects, numbers, requests, max_new_tokens, progress)
    else:
        with (
            common.loaded("tiny", None, cache_memory=0, max_running=max(numbers)) as llm,
            clients.own_server(llm) as own,
            common.progressing() as progress,
        ):
            subjects = {"library": clients.library(llm), "server": clients.server(own, None, "")}
            rows = clients.study(subjects, numbers, requests, max_new_tokens, progress)
    if json:
        common.print_json({"rows": rows})
        return
    common.say(
        "| | at once | first token | 95th | between tokens | whole answer | 95th | tokens a second "
        "| answer's time against the first row's | tokens a second against | same words |\n"
    )
    common.say("| --- " * 11 + "|\n")
    for row in rows:
        common.say("| " + " | ".join(_cells(row)) + " |\n")


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
    ]


def _numbers(text: str) -> list[int]:
    """Raises HippoError."""
    numbers = [int(one) for one in text.split(",") if one.strip().isdecimal() and int(one) > 0]
    if len(numbers) != len(text.split(",")):
        raise HippoError(f"concurrency {text!r} are no whole numbers above zero", "use 1,8")
    return numbers
