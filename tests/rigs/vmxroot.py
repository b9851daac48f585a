"""The VMX rig's root directory: what is in the initramfs that Bochs boots.

Two cpio archives, one after the other in memory, which the kernel unpacks as one.  The base holds
all that seldom changes, and is cached; the overlay holds the checkout and the command, and is
written for each run.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import guest, host
from .cpio import CpioWriter
from .kernel import Kernel

CHECKOUT = "/kvmpy"  # where the copy of the checkout is in the guest
_LAYOUT = "1"  # change it when what is written to the cache changes
_BLOCK = 128 * 1024  # of Bochs's memory: the base's size is a multiple, so that the overlay fits on
_SITE = "usr/local/lib/{python}/dist-packages"  # where Debian's Python looks by itself

# Must be importable in the guest: a check when the base is made, not a list of what is in it.
_IMPORTS = "cffi, ctypes, hypothesis, lzma, psutil, pytest, rich.table, xml.etree"
_LIBRARIES = re.compile(
    r"zlib1g|lib(bfd|binutils|bz2|c6|ctf|expat|ffi|gcc-s|jansson|lzma|sframe|zstd"
    r"|blkid|com-err|ext2fs|ss\d|uuid)"
)
# Whom tests of the statistics compare with; no test in the guest does. SciPy is 180 MB.
_FOR_UNIT_TESTS = re.compile(r"scipy|pyperf")
# Left out of the archive: every megabyte costs the guest's boot time.
_USELESS = re.compile(
    r"etc/|usr/(share|include)/|usr/lib/(valgrind|mime|bfd-plugins|debug)|lib/(systemd|udev)/"
    r"|.*/x86_64-linux-gnu/(gconv|perl|audit|ldscripts/(?!elf_x86_64|elf_i386)|lib(mvec|gprofng|opcodes))"
    r"|usr/lib/python3[.0-9]*/(lib2to3|ensurepip|idlelib|tkinter|turtle|test|pydoc_data|distutils"
    r"|wsgiref|xmlrpc|config-|__phello__|dbm|curses|sqlite3|mailbox)"
    r"|.*/lib-dynload/_(codecs_|ctypes_test|curses|hashlib|sqlite3|ssl|test|xxtest)"
    r"|.*/dist-packages/bin(/|$)|.*/__pycache__$"
    # of Pygments' hundreds of lexers, the ones that pytest imports
    r"|.*/pygments/(lexers|styles|formatters)/(?!(_.*|diff|python|default|terminal)\.pyc$)"
)
_PROGRAMS = {"as", "ld", "ld.bfd"}  # of binutils
_TOOLS = {"debugfs", "e2fsck", "mke2fs"}  # of e2fsprogs, in a directory that is not in PATH
_NOT_COPIED = re.compile(
    r"(.*/)?(__pycache__|\..*|.*\.pyc|.*\.egg-info|.*\.o)$|(build|dist|htmlcov)$"
)


@dataclass(frozen=True)
class Root:
    """The cached base: the archive, and the directory tree that it was made from."""

    archive: Path
    tree: Path
    python: str  # "python3.11"

    def run_python(self, *arguments: str) -> str:
        """Run the guest's own Python on the host, through its own dynamic loader."""
        directories = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
        libraries = ":".join(str(self.tree / path) for path in directories)
        loader = self.tree / "lib64" / "ld-linux-x86-64.so.2"
        program = self.tree / "usr/bin" / self.python
        return host.run(
            [str(loader), "--library-path", libraries, str(program), *arguments],
            env={"PYTHONHOME": str(self.tree / "usr"), "PATH": os.defpath, "LANG": "C.UTF-8"},
        )

    def compile(self, directory: Path, *, installed_as: str, legacy: bool = False) -> None:
        """Compile a directory to bytecode that is never checked against its source.

        ``legacy`` puts it beside the source, where Python finds it without the source.
        """
        flags = ["-b"] if legacy else []
        prefix = ["-s", str(directory), "-p", installed_as]
        mode = ["--invalidation-mode", "unchecked-hash"]
        self.run_python("-m", "compileall", "-q", *flags, *prefix, *mode, str(directory))


def requirements() -> list[str]:
    """What the package and its tests in here need, as pyproject.toml says."""
    project = tomllib.loads((host.CHECKOUT / "pyproject.toml").read_text())["project"]
    everything = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return [name for name in everything if not _FOR_UNIT_TESTS.match(name)]


def base(kernel: Kernel) -> Root:
    """The base for ``kernel``, made when the cache has none of this kind."""
    modules = [f"{path.parent.parent.name}/{path.name}" for path in kernel.modules]
    source = Path(__file__).read_bytes() + Path(guest.__file__).read_bytes()
    key = host.fingerprint(_LAYOUT, *modules, *requirements(), source)
    entry = host.cached("vmx-root", key, lambda directory: _build(directory, kernel))
    (program,) = (entry / "tree/usr/bin").glob("python3.*")
    return Root(entry / "base.cpio", entry / "tree", program.name)


def _build(directory: Path, kernel: Kernel) -> None:
    python = next(
        name.removesuffix("-minimal")
        for name in host.dependencies("python3-minimal")
        if re.fullmatch(r"python3\.\d+-minimal", name)
    )
    programs = f"Debian's {python}, binutils, e2fsprogs"
    host.say(f"making the VMX rig's root: {programs}, {', '.join(requirements())}")
    tree = directory / "tree"
    host.unpack(host.download(_packages(python), directory / "deb"), tree)
    site = tree / _SITE.format(python=python)
    site.mkdir(parents=True)
    for wheel in host.wheels(requirements(), python.removeprefix("python"), directory / "wheels"):
        shutil.unpack_archive(wheel, site, "zip")
    root = Root(directory / "base.cpio", tree, python)
    library = tree / "usr/lib" / python
    # The guest never sees these sources: a traceback loses its source lines in there, and the
    # archive more than half of its size.
    for path, name in ((library, f"/usr/lib/{python}"), (site, f"/{site.relative_to(tree)}")):
        root.compile(path, installed_as=name, legacy=True)
    with open(root.archive, "wb") as stream, CpioWriter(stream) as archive:
        guest.add_base(archive, kernel, guest.busybox())
        init = guest.init(mount=f"root=\n{guest.MOUNTS}", enter="sh /command.sh")
        archive.file("init", init, 0o755)
        archive.tree(tree, keep=_keep(tree))
        archive.symlink("usr/bin/python3", python)
        archive.symlink("usr/bin/python", python)
        for program in _PROGRAMS:
            archive.symlink(f"usr/bin/{program}", f"x86_64-linux-gnu-{program}")
        for tool in _TOOLS:
            (found,) = (path for path in tree.rglob(tool) if path.parent.name == "sbin")
            archive.symlink(f"usr/bin/{tool}", f"/{found.relative_to(tree)}")
    with open(root.archive, "ab") as stream:
        stream.write(bytes(-stream.tell() % _BLOCK))
    root.run_python("-c", f"import {_IMPORTS}")
    shutil.rmtree(directory / "deb")
    shutil.rmtree(directory / "wheels")


def _packages(python: str) -> list[str]:
    """Python, binutils, e2fsprogs, and the shared libraries that they depend on."""
    found = [f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib"]
    found += ["binutils-x86-64-linux-gnu", "e2fsprogs"]
    for package in found:  # grows while it is walked
        for name in host.dependencies(package):
            if name not in found and _LIBRARIES.match(name):
                found.append(name)
    return found


def _keep(tree: Path) -> Callable[[str], bool]:
    def keep(path: str) -> bool:
        if _USELESS.match(path):
            return False
        if path.startswith("usr/bin/"):
            name = path.removeprefix("usr/bin/").removeprefix("x86_64-linux-gnu-")
            return name in _PROGRAMS or name.startswith("python3.")
        if "sbin" in path.split("/")[:-1]:
            return path.rpartition("/")[2] in _TOOLS
        # Python sources that were compiled in place
        return not (path.endswith(".py") and (tree / (path + "c")).exists())

    return keep


def write_overlay(path: Path, root: Root, job: guest.Job) -> None:
    """Write what is this run's own: the checkout, compiled, the extra files and the command."""
    stage = path.with_suffix(".tree")
    copy = stage / CHECKOUT.strip("/")
    _copy_checkout(copy)
    root.compile(copy, installed_as=CHECKOUT)
    with open(path, "wb") as stream, CpioWriter(stream) as archive:
        archive.tree(stage)
        for extra in job.extra_files:
            _add(archive, extra)
        archive.file("command.sh", job.script("vmx", CHECKOUT, _ENVIRONMENT).encode())
    shutil.rmtree(stage)


_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PYTHONPATH": CHECKOUT,
    "PYTHONNODEBUGRANGES": "1",
    "PYTEST_PLUGINS": "kvmpy.pytest_plugin",  # its entry point takes an installed package
}


def _copy_checkout(target: Path) -> None:
    """Copy the checkout but for its caches and build products; the built extension module stays."""

    def ignore(directory: str, names: list[str]) -> set[str]:
        base = os.path.relpath(directory, host.CHECKOUT)
        return {
            name
            for name in names
            if _NOT_COPIED.match(os.path.normpath(os.path.join(base, name)))
            or Path(directory, name).is_socket()
        }

    shutil.copytree(host.CHECKOUT, target, symlinks=True, ignore=ignore)


def _add(archive: CpioWriter, path: Path) -> None:
    path = path.absolute()
    if path.is_dir():
        archive.directory(str(path))
        archive.tree(path, str(path), keep=lambda name: not _NOT_COPIED.match(name))
    elif path.is_file():
        archive.file(str(path), path.read_bytes(), path.stat().st_mode & 0o777)
    else:
        raise host.RigError(f"--add {path}: no such file or directory")
