"""``dit-cache serve``: the model behind OpenAI's image endpoint, with a page and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_cache_backends.cli_call import DeviceOption, DtypeOption
from dit_cache_backends.cli_config import CacheBackendOption, CacheConfigOption, told_settings
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.terminal import quiet, readable_errors

__all__ = ["serve"]


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="'demo' (the shipped one), a folder, or a name on the model hub."
        ),
    ] = "demo",
    host: Annotated[
        str, typer.Option(help="The address to bind; 0.0.0.0 lets every machine of the network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8091,
    cache_backend: CacheBackendOption = None,
    cache_config: CacheConfigOption = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="DIT_CACHE_API_KEY",
            help="What callers have to show. Better in the environment: arguments are seen by other users.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name by which the server may be called, beside its address; several times for several."
        ),
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="The model's name in requests and answers; MODEL unless said.")
    ] = None,
    max_concurrent: Annotated[
        int, typer.Option(min=1, help="Pictures that are drawn in turns, a step of each; each holds memory.")
    ] = 4,
    max_waiting: Annotated[int, typer.Option(min=0, help="Pictures that may wait; one more gets 429.")] = 64,
    max_batch: Annotated[
        int,
        typer.Option(min=1, help="Waiting pictures with the same settings that may be drawn in one call."),
    ] = 1,
    max_images: Annotated[int, typer.Option(min=1, help="Pictures of one request.")] = 10,
    max_steps: Annotated[int, typer.Option(min=1, help="Denoising steps of a picture.")] = 200,
    max_side: Annotated[int, typer.Option(min=1, help="Pixels in width and height.")] = 2048,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 64 * 1024,
    request_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which a request is cancelled, waiting included.")
    ] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="On SIGTERM, seconds for the requests under way.")
    ] = 30.0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    warm_up: Annotated[
        bool, typer.Option(help="Draw two steps before the first request, which else pays for it.")
    ] = True,
    log_level: Annotated[str, typer.Option(help="critical, error, warning, info, debug or trace.")] = "info",
) -> None:
    """Serve pictures over HTTP, as OpenAI's clients ask for them; a page for people is at `/`."""
    with readable_errors("demo,serve"):
        from dit_cache_backends.configuration.settings import Settings
        from dit_cache_backends.hosts.omni import Omni
        from dit_cache_backends.serve.access import is_loopback
        from dit_cache_backends.serve.limits import Limits
        from dit_cache_backends.serve.server import Serving, make_server

        # A mistake here is told before the model is loaded.
        settings = told_settings(cache_backend, cache_config)
        settings.make_backend()
        if api_key is not None and not api_key.strip():
            raise ConfigError("the API key is empty; give one, or leave --api-key and DIT_CACHE_API_KEY out")
        serving = Serving(
            model=served_model_name or _name(model),
            settings=settings,
            host=host,
            port=port,
            api_key=api_key,
            allowed_hosts=allowed_host or (),
            limits=Limits(
                max_steps=max_steps,
                max_images=max_images,
                max_side=max_side,
                max_body=max_body,
                request_seconds=request_timeout,
            ),
            max_concurrent=max_concurrent,
            max_waiting=max_waiting,
            max_batch=max_batch,
            drain_seconds=drain_seconds,
            log_level=log_level,
        )
        if not is_loopback(host) and api_key is None:
            typer.echo(
                f"dit-cache: warning: {host} is reached from other machines, and without --api-key every one of them"
                " may draw here",
                err=True,
            )
        quiet()
        with Omni(model, settings=Settings(), dtype=dtype, device=device) as loaded:
            pipeline = loaded.pipeline
        server = make_server(pipeline, serving)
        try:
            if warm_up:
                server.service.warm_up()
            server.run()
        finally:
            server.service.close()


def _name(model: str) -> str:
    """The name of a model on the hub, or of the folder that it lies in: its path is nobody else's concern."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
