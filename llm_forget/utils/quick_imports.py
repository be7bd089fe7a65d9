"""Import large libraries without the work that they do for parts we do not use."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType
from typing import Any

_COMPILING = "bitsandbytes"
_AT_FIRST_USE = "datasets"


class _LateKernels(MetaPathFinder):
    """Imports bitsandbytes so that its fallback kernels are compiled when they are first called.

    PEFT imports bitsandbytes wherever it is installed. On import it wraps kernels for devices without kernels of their own in
    ``torch.compile``, which loads the whole compiler: more than a second, for kernels that most runs never call.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _COMPILING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Late(spec.loader)
        return spec


class _AtFirstUse(MetaPathFinder):
    """Imports datasets, and with it pandas and pyarrow, when one of its names is first read.

    The Trainer of transformers imports it wherever it is installed, only to ask whether the rows come from it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AT_FIRST_USE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


class _Late(Loader):
    """A loader during whose work ``torch.compile`` waits for the first call of what it compiles."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        compiler: Any = torch.compile
        torch.compile = partial(_late, compiler)
        try:
            self._loader.exec_module(module)
        finally:
            torch.compile = compiler

    def __getattr__(self, name: str) -> Any:  # resources and sources come from the real loader
        return getattr(self._loader, name)


def _late(compiler: Callable[..., Any], model: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``torch.compile`` of a function or as a decorator, at the first call."""
    if model is None:
        return partial(_late, compiler, **options)
    compiled = cache(lambda: compiler(model, **options))

    @wraps(model)
    def called(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return called


def quick_imports() -> None:
    """Make later imports of large libraries quicker, in this process. Calling it twice changes nothing."""
    for finder in (_LateKernels, _AtFirstUse):
        if not any(isinstance(one, finder) for one in sys.meta_path):
            sys.meta_path.insert(0, finder())


@contextmanager
def importing() -> Iterator[None]:
    """Context for the imports of a command, without garbage collection, which would take a fifth of their time.

    Modules live as long as the process, so later collections leave out what exists at the end of the context.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
