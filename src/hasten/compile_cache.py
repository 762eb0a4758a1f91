"""Where compiled code is kept: beside the sources or in the user's cache, and else for this process alone.

Imported by every package with compiled code before that code. Read-only installations, read-only homes and
full disks leave numba no place, and it would refuse to start. Then a temporary folder stands in, with a copy
of what was compiled before: an image that was warmed up while it was built (``hasten warmup``) starts warm.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from hasten.errors import ConfigError

_NEEDED_BYTES = 32 * 2**20
_PACKAGE = Path(__file__).parent
_VARIABLE = "NUMBA_CACHE_DIR"
_MEMORY = "/dev/shm"
_log = logging.getLogger("hasten")


def choose(package: Path = _PACKAGE) -> Path | None:
    """Find out whether compiled code can be kept; if not, the folder that this process uses.

    Raises ConfigError where nothing can be written at all.
    """
    given, beside = os.environ.get(_VARIABLE), package / "__pycache__"
    if _can_hold(Path(given) if given else beside):
        return None
    from numba.misc.appdirs import AppDirs

    users = Path(AppDirs("numba", appauthor=False).user_cache_dir)  # type: ignore[no-untyped-call]
    if _can_hold(beside) or _can_hold(users):
        return None
    folder = _temporary_folder()
    if folder is None:
        raise ConfigError(
            f"hasten compiles code and finds no place for it: {package}, {users} and temporary folders "
            f"cannot be written or are full; set {_VARIABLE} to a folder with {_NEEDED_BYTES >> 20} MiB"
        )
    _use(folder, package)
    _log.warning(
        "compiled code cannot be kept: %s and %s cannot be written or are full; what is missing is compiled "
        "at each start, unless %s names a folder that can be written",
        package,
        users,
        _VARIABLE,
    )
    return folder


def _can_hold(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
        return shutil.disk_usage(folder).free >= _NEEDED_BYTES
    except OSError:
        return False


def _temporary_folder() -> Path | None:
    bases = [_MEMORY]
    with contextlib.suppress(FileNotFoundError):  # none can be written
        bases.insert(0, tempfile.gettempdir())
    for base in bases:
        if Path(base).is_dir() and _can_hold(Path(base)):
            folder = Path(tempfile.mkdtemp(prefix="hasten-compiled-", dir=base))
            atexit.register(_remove, folder, os.getpid())
            return folder
    return None


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not in a process that it forked
        shutil.rmtree(folder, ignore_errors=True)


def _use(folder: Path, package: Path) -> None:
    """Of this process and those that it starts."""
    import numba
    from numba.core.caching import _CacheLocator

    given = os.environ.get(_VARIABLE)
    for compiled in {file.parent for file in package.rglob("__pycache__/*.nbi")}:
        place = _CacheLocator.get_suitable_cache_subpath(str(compiled.parent / "any.py"))  # type: ignore[no-untyped-call]
        _copy(compiled, folder / place)
    if given and Path(given).is_dir():
        for compiled in {file.parent for file in Path(given).rglob("*.nbi")}:
            _copy(compiled, folder / compiled.relative_to(given))
    os.environ[_VARIABLE] = str(folder)
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


def _copy(compiled: Path, place: Path) -> None:
    place.mkdir(exist_ok=True)
    for file in [*compiled.glob("*.nbi"), *compiled.glob("*.nbc")]:
        shutil.copyfile(file, place / file.name)


choose()
