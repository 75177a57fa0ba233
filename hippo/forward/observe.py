"""Watching or replacing the attention of a forward, without a change to the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

# (layer, query (1, H, n, d), key (1, H_kv, L, d), scaling), before the layer's attention; queries and keys after RoPE
Observer = Callable[[int, Tensor, Tensor, float], None]
Attend = Callable[..., Any]  # transformers' attention functions


class _Active(threading.local):
    wrappers: tuple[Callable[[Attend], Attend], ...] = ()


_active, _installing = _Active(), threading.Lock()


@contextmanager
def observing(*observers: Observer) -> Iterator[None]:
    """While open, `observers` are called in every language model layer that this thread runs. Models and other threads
    are unaffected."""
    with wrapping(lambda attend: _observed(attend, observers)) if observers else nullcontext():
        yield


@contextmanager
def wrapping(wrapper: Callable[[Attend], Attend], innermost: bool = False) -> Iterator[None]:
    """While open, the models that this thread runs use `wrapper` of their attention function. innermost: what other
    wrappers add happens around it."""
    _install()
    before = _active.wrappers
    _active.wrappers = (wrapper, *before) if innermost else (*before, wrapper)
    try:
        yield
    finally:
        _active.wrappers = before


@contextmanager
def unobserved() -> Iterator[None]:
    """While open, this thread's forwards are none of what is observed: another request's, from within one."""
    before, _active.wrappers = _active.wrappers, ()
    try:
        yield
    finally:
        _active.wrappers = before


def _install() -> None:
    # The lookup is wrapped, not the registered functions: "eager" is never registered, since each modelling file passes
    # its own as the default. Without a wrapper the lookup returns what it always did.
    with _installing:
        plain: Any = AttentionInterface.get_interface
        if hasattr(plain, "observed_by_hippo"):
            return

        def get_interface(self: AttentionInterface, *args: Any, **kwargs: Any) -> Attend:
            attend = plain(self, *args, **kwargs)
            for wrapper in _active.wrappers:
                attend = wrapper(attend)
            return attend

        get_interface.observed_by_hippo = True  # type: ignore[attr-defined]
        AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]


def _observed(attend: Attend, observers: tuple[Observer, ...]) -> Attend:
    def attention(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = getattr(module, "layer_idx", None)  # vision layers have none
        if isinstance(layer, int):
            for observe in observers:
                observe(layer, query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
        return attend(module, query, key, *args, **kwargs)

    return attention
