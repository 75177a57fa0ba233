"""hippo serve: an OpenAI-compatible server."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from hippo.cli import common
from hippo.errors import BadRequest, HippoError

_GROUP_MEDIA = "Videos and images"
_GROUP_RAY = "Ray"


def serve(
    target: common.TargetOption = "tiny",
    draft: common.DraftOption = None,
    drafter: common.DrafterOption = None,
    host: Annotated[str, typer.Option(help="Address to listen at. 0.0.0.0: every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="HIPPO_API_KEY", help="Ask for it. May be given several times.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="By default the target's name.")] = None,
    max_running: common.RunningOption = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; more get status 503.")] = 64,
    cache_memory: common.CacheOption = None,
    allowed_local_media_path: Annotated[
        Path | None, typer.Option(help="Folder whose files file:// URLs may name.", rich_help_panel=_GROUP_MEDIA)
    ] = None,
    allowed_media_domains: Annotated[
        list[str] | None,
        typer.Option(help="Host that URLs may name, and no others. Several times.", rich_help_panel=_GROUP_MEDIA),
    ] = None,
    max_media_bytes: Annotated[
        int, typer.Option(min=1, help="Of one video or image.", rich_help_panel=_GROUP_MEDIA)
    ] = 64 << 20,
    media_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for fetching one.", rich_help_panel=_GROUP_MEDIA)
    ] = 30.0,
    max_media: Annotated[
        int, typer.Option(min=0, help="Videos and images of one request.", rich_help_panel=_GROUP_MEDIA)
    ] = 16,
    media_memory: Annotated[
        int, typer.Option(min=128, help="MiB for decoding those of a request.", rich_help_panel=_GROUP_MEDIA)
    ] = 2048,
    decode_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for decoding one.", rich_help_panel=_GROUP_MEDIA)
    ] = 120.0,
    max_video_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Of one request; longer videos are scaled down and thinned.", rich_help_panel=_GROUP_MEDIA
        ),
    ] = 16384,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Site whose pages may ask (CORS). Several times.")
    ] = None,
    disable_page: Annotated[bool, typer.Option("--disable-page", help="No page at /.")] = False,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = "auto",
    draft_device: common.DraftDeviceOption = "auto",
    draft_bits: common.BitsOption = "auto",
    trust_remote_code: common.TrustOption = False,
    attn_implementation: common.AttentionOption = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Serve by Ray Serve: a cluster's host:port, auto for the one that this machine is in, or local.",
            rich_help_panel=_GROUP_RAY,
        ),
    ] = None,
    ray_replicas: Annotated[int, typer.Option(min=1, help="Pairs loaded, at least.", rich_help_panel=_GROUP_RAY)] = 1,
    ray_max_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="At most, as more requests wait. Without it: no more.", rich_help_panel=_GROUP_RAY),
    ] = None,
    ray_gpus: Annotated[
        float, typer.Option(min=0, help="GPUs of each pair, where the cluster has any.", rich_help_panel=_GROUP_RAY)
    ] = 1.0,
) -> None:
    """Serve the OpenAI API for questions about videos, and a page at / to try it. Needs hippo-video[server].

    hippo serve

    hippo serve --target Qwen/Qwen2.5-VL-7B-Instruct --draft Qwen/Qwen2.5-VL-3B-Instruct --device cuda

    hippo serve --ray auto --ray-replicas 2 --ray-max-replicas 8
    """
    if allowed_local_media_path is not None and not allowed_local_media_path.is_dir():
        raise BadRequest(f"{allowed_local_media_path} is no folder", "name the folder whose files may be read")
    _require_free(host, port)
    with common.importing():
        try:
            from hippo.serve.app import make_app
            from hippo.serve.media import MediaPolicy
            from hippo.serve.run import serve as run
            from hippo.serve.service import Service
        except ModuleNotFoundError as error:
            raise HippoError(f"{error.name} is not installed", "pip install 'hippo-video[server]'") from None
    domains = tuple(one.lower() for one in allowed_media_domains or ())
    policy = MediaPolicy(
        allowed_local_media_path,
        domains,
        max_media_bytes,
        media_timeout,
        max_media,
        media_memory << 20,
        decode_timeout,
        max_video_tokens,
    )
    where = {
        "drafter": drafter,
        "device": device,
        "dtype": dtype,
        "draft_device": draft_device,
        "draft_bits": draft_bits,
        "trust_remote_code": trust_remote_code,
        "attn_implementation": attn_implementation,
        "max_running": max_running,
        "cache_memory": None if cache_memory is None else cache_memory << 20,
    }
    name = served_model_name or (Path(target).name if Path(target).is_dir() else target)
    options: dict[str, Any] = {
        "keys": tuple(api_key or ()),
        "origins": tuple(allow_origin or ()),
        "with_page": not disable_page,
    }

    def ready(port: int) -> None:
        what = "the API is at /v1" if disable_page else "a page to try it is at /, the API at /v1"
        common.say(f"hippo serves {name} at http://{host}:{port}: {what}\n")

    if ray is not None:
        if (most := ray_max_replicas or ray_replicas) < ray_replicas:
            raise BadRequest(f"--ray-max-replicas {most} is below --ray-replicas {ray_replicas}", "swap them")
        common.require_draft(target, draft, drafter)
        with common.importing():
            try:
                from hippo.ray.serve import Served, serve_until_stopped
            except ModuleNotFoundError as error:
                raise HippoError(f"{error.name} is not installed", "pip install 'hippo-video[ray]'") from None
        served = Served(target, draft, where, name, policy, max_waiting, options)
        serve_until_stopped(ray, host, port, served, (ray_replicas, most), ray_gpus, ready)
        return
    with common.loaded(target, draft, **where) as llm, closing(Service(llm, name, policy, max_waiting)) as service:
        service.workers.start()
        run(make_app(service, **options), service, host, port, ready)


def _require_free(host: str, port: int) -> None:
    """Before models are loaded. Raises HippoError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise HippoError(f"{host}:{port} cannot be served at ({error.strerror})", "choose another --port") from None
