"""Compile kernels with numba, cached in the user's cache folder under a digest of the kernels' sources.

numba renews a cached function when its own file changes, but not when a function that it calls does. The digest closes
that hole: it covers every module with kernels that the function's module imports, directly or not.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_PACKAGES = ("batching", "placement", "simulator")
_ROOT = Path(__file__).resolve().parent
_IMPORT = re.compile(rf"^(?:from|import) optsched\.((?:{'|'.join(_PACKAGES)})[\w.]*)(?: import (.+))?", re.MULTILINE)


@lru_cache(maxsize=256)
def _sources(path: Path) -> frozenset[Path]:
    """Return a module's file and those of the modules with kernels that it imports, directly or not."""
    found, waiting = {path}, [path]
    while waiting:
        text = waiting.pop().read_text(encoding="utf-8")
        for module, names in _IMPORT.findall(text):
            base = _ROOT.joinpath(*module.split("."))
            submodules = [base / f"{name.split()[0]}.py" for name in names.split(",") if name.strip(" (")]
            for file in (base.with_suffix(".py"), *submodules):
                if file.is_file() and file not in found:
                    found.add(file)
                    waiting.append(file)
    return frozenset(found)


def cache_folder(module: Path) -> Path:
    """Return the folder of a module's compiled kernels, in ``$XDG_CACHE_HOME`` or ``~/.cache``, by their digest."""
    digest = hashlib.sha256()
    for path in sorted(_sources(module)):
        digest.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "optsched" / f"{module.stem}-{digest.hexdigest()[:16]}"


def kernel(function: FunctionT) -> FunctionT:
    """Compile a function in numba's nopython mode at its first call, releasing the GIL, cached on disk."""
    return _compile(function, inline=False)


def lean(function: FunctionT) -> FunctionT:
    """Compile a kernel that allocates no array, and so needs no reference counts.

    numba counts the references to each array of a struct that a kernel is given, atomically, at each call; where structs
    have dozens of arrays and calls take nanoseconds, that is most of the time. Compilation fails if something is allocated.
    Only another such kernel may be handed an array by it: to whoever counts, the array would come without its count.
    """
    return _compile(function, inline=False, counted=False)


def inlined(function: FunctionT) -> FunctionT:
    """Compile a small helper that is inlined into the kernels that call it."""
    return _compile(function, inline=True)


def _types_of(arguments: tuple[object, ...]) -> tuple[Any, ...]:
    import numba

    typeof: Any = numba.typeof
    return tuple(typeof(argument) for argument in arguments)


def compile_for(function: FunctionT, arguments: tuple[object, ...]) -> FunctionT:
    """Compile a kernel for arguments like these, or load it from the cache, and for no others."""
    dispatcher: Any = function
    dispatcher.compile(_types_of(arguments))
    dispatcher.disable_compile()
    return function


def address_of(function: Callable[..., object], arguments: tuple[object, ...]) -> int:
    """Return the address of a compiled kernel, for `call_by_address`; it is valid in this process."""
    dispatcher: Any = function
    result = dispatcher.overloads[_types_of(arguments)]
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


def call_by_address(sample: Callable[[], tuple[object, ...]]) -> Callable[..., int]:
    """Return a function for compiled code that calls the kernel of five arguments at an address and returns its integer.

    Parameters
    ----------
    sample
        Returns arguments of the types that such kernels are compiled for.

    Notes
    -----
    numba's own function values look their address up in Python each time that they enter compiled code, 0.1 ms; an integer
    costs nothing. It calls with numba's calling convention, so errors in the kernel propagate.
    """
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    unlikely: Any = cgutils.if_unlikely

    def call(_: Any, address: Any, first: Any, second: Any, third: Any, fourth: Any, fifth: Any) -> Any:
        wanted = _types_of(sample())

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            convention = context.call_conv
            kind = convention.get_function_type(types.int64, wanted)
            pointer = builder.inttoptr(values[0], kind.as_pointer())
            status, result = convention.call_function(builder, pointer, types.int64, wanted, values[1:])
            with unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return result

        return types.int64(types.int64, *wanted), generate

    compiled: Callable[..., int] = intrinsic(call)
    return compiled


def _compile(function: FunctionT, *, inline: bool, counted: bool = True) -> FunctionT:
    import numba

    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder(Path(function.__code__.co_filename).resolve()))
    try:
        njit: Any = numba.njit
        decorate: Any = njit(cache=True, nogil=True, inline="always" if inline else "never", _nrt=counted)
        compiled: FunctionT = decorate(function)
    finally:
        config.CACHE_DIR = before
    return compiled
