"""What the rigs take from the host: apt and pip packages, and a cache directory to keep them in."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_STALE_AFTER = 7 * 24 * 3600  # seconds


class RigError(Exception):
    """The rig cannot do its work; the message is one line that says what to do about it."""


class Unavailable(RigError):
    """What the rig needs is not available on this machine: no root, no network, not Debian."""


def say(message: str) -> None:
    """Tell the person at the terminal what takes time.  stdout belongs to the inner command."""
    print(f"rig: {message}", file=sys.stderr, flush=True)


def cache_root() -> Path:
    """The cache directory: $KVMPY_RIG_CACHE, else $XDG_CACHE_HOME/kvmpy/rigs, else ~/.cache."""
    if chosen := os.environ.get("KVMPY_RIG_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base).absolute() / "kvmpy" / "rigs"


def fingerprint(*parts: str | bytes) -> str:
    """A short key for a cache entry made from ``parts``."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def work_directory(name: str) -> Iterator[Path]:
    """A fresh directory in the cache, removed at the end however that comes about."""
    parent = cache_root() / "work"
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent / "lock"):
        _remove_abandoned(parent)
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        owner = os.open(path, os.O_RDONLY)
        fcntl.flock(owner, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_abandoned(parent: Path) -> None:
    """Remove work directories whose owner was killed: nobody holds their locks any longer."""
    for path in parent.iterdir():
        if not path.is_dir():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory ``kind-key`` in the cache, made by ``build(directory)`` if it is not there yet.

    Two rigs may ask at once: one builds, the other waits.  An entry appears whole or not at all.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    entry = root / f"{kind}-{key}"
    if entry.is_dir():
        os.utime(entry)  # in use: not stale
        return entry
    with _locked(root / f"{kind}.lock"):
        if not entry.is_dir():
            with work_directory(kind) as work:
                content = work / "content"
                content.mkdir()
                build(content)
                content.rename(entry)
            _remove_stale(root, f"{kind}-*")
    return entry


def run(argv: list[str], **options: object) -> str:
    """Run a tool and return its stdout.  Raises RigError with the last line of its stderr."""
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options
        )
    except FileNotFoundError:
        raise Unavailable(f"{argv[0]} not found; the rigs need a Debian host") from None
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith(("E:", "ERROR"))]
        command = " ".join(argv[:4])
        raise RigError(f"'{command} ...' failed ({done.returncode}): {(errors or lines)[-1]}")
    return str(done.stdout)


def need(packages: Mapping[str, str]) -> None:
    """Have Debian packages installed; ``packages`` maps a command or absolute path to a package.

    Installs what is missing when root.  Otherwise raises Unavailable with the command to run.
    """
    missing = _missing(packages)
    if not missing:
        return
    names = " ".join(missing)
    if os.geteuid() != 0:
        raise Unavailable(f"not installed: {names}. Run: sudo apt-get install -y {names}")
    say(f"installing {names}")
    # Somebody else's apt may be at work as well.
    patient = ["-o", "DPkg::Lock::Timeout=300"]
    install = ["apt-get", *patient, "install", "-y", "-q", "--no-install-recommends", *missing]
    _apt(install, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if missing := _missing(packages):
        raise RigError(f"installed, and still not found: {' '.join(missing)}")


def _apt(argv: list[str], **options: object) -> str:
    """Run an apt tool, and when it fails, once more with new package lists.

    One at a time: apt refuses what finds its locks taken, and two rigs may start at once.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "apt.lock"):
        return _apt_locked(argv, **options)


def _apt_locked(argv: list[str], **options: object) -> str:
    try:
        return run(argv, **options)
    except RigError as error:
        if os.geteuid() != 0:
            raise Unavailable(f"{error} (old package lists? sudo apt-get update)") from None
    try:
        run(["apt-get", "update", "-q"])
        return run(argv, **options)
    except RigError as error:
        raise Unavailable(str(error)) from None


def _missing(packages: Mapping[str, str]) -> list[str]:
    def present(thing: str) -> bool:
        return Path(thing).exists() if thing.startswith("/") else shutil.which(thing) is not None

    return sorted({package for thing, package in packages.items() if not present(thing)})


def dependencies(package: str) -> list[str]:
    """The packages that ``package`` depends on, one level deep, first alternatives only."""
    text = _apt(["apt-cache", "depends", "--important", package])
    found = []
    for line in text.splitlines():
        kind, _, name = line.strip().partition(" ")
        if kind in ("Depends:", "PreDepends:") and not name.startswith("<"):
            found.append(name.partition(":")[0])
    return found


def download(packages: Iterable[str], directory: Path) -> list[Path]:
    """Download Debian packages into ``directory``, without installing them; needs no root."""
    # As root, apt drops to the user _apt, who may not be able to write here.
    argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages]
    directory.mkdir(parents=True, exist_ok=True)
    _apt(argv, cwd=directory)
    return sorted(directory.glob("*.deb"))


def unpack(packages: Iterable[Path], tree: Path) -> None:
    """Unpack Debian packages below ``tree``, running none of their scripts."""
    for package in packages:
        run(["dpkg-deb", "-x", str(package), str(tree)])


def pip() -> list[str]:
    """The command for a pip: this interpreter's, else the checkout's virtual environment's."""
    for python in (sys.executable, str(CHECKOUT / ".venv" / "bin" / "python")):
        with contextlib.suppress(RigError):
            run([python, "-m", "pip", "--version"])
            return [python, "-m", "pip"]
    need({"pip3": "python3-pip"})
    return ["pip3"]


def wheels(requirements: Iterable[str], python: str, directory: Path) -> list[Path]:
    """Download wheels for CPython ``python`` ("3.11") on x86-64 glibc, with their dependencies."""
    # The glibc floors that wheels are built for; Debian 12, the oldest host, has glibc 2.36.
    floors = ("2014", "_2_17", "_2_24", "_2_27", "_2_28", "_2_31", "_2_34")
    platforms = [f"--platform=manylinux{floor}_x86_64" for floor in floors]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    try:
        run([*pip(), "download", "-q", "-d", str(directory), *target, *platforms, *requirements])
    except RigError as error:
        raise Unavailable(str(error)) from None
    return sorted(directory.glob("*.whl"))


def _remove_stale(parent: Path, pattern: str) -> None:
    horizon = time.time() - _STALE_AFTER
    for path in parent.glob(pattern):
        if path.is_dir() and path.stat().st_mtime < horizon:
            shutil.rmtree(path, ignore_errors=True)
