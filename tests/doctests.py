"""The examples in kvmpy's docstrings, found and run: every public method has one.

An example finds these names: ``kvmpy``; ``kvm``, an open KVM; ``vm``, a VM with 16 MiB; ``cpu``,
its vCPU; ``memory``, a GuestMemory of 16 MiB; ``report``, a benchmark's record, and
``sched_result``, that of an experiment in scheduling, both made up. Each is made when an example
names it, and closed after.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import made_up

import kvmpy

#: Not an interface for scripts: the command line, what stands behind methods of public classes,
#: and rooms' insides behind kvmpy.boot.load() and the commands info and doctor.
_LEFT_OUT = (
    *("kvmpy.__main__", "kvmpy._native", "kvmpy.boot.", "kvmpy.cli", "kvmpy.pytest_plugin"),
    *("kvmpy.cpuid.diff", "kvmpy.cpuid.edit", "kvmpy.cpuid.topology", "kvmpy.memory.slots"),
    "kvmpy.host.cgroup",
    *("kvmpy.probe.doctor", "kvmpy.probe.info", "kvmpy.probe.modes", "kvmpy.probe.system"),
    *(
        "kvmpy.lab.tries",
        "kvmpy.lab.show.rings_figure",
        "kvmpy.lab.show.sensitive_figure",
        "kvmpy.console.terminal",
        "kvmpy.machine.pc",
    ),
    *("kvmpy.state.codec", "kvmpy.state.host", "kvmpy.state.msr_list"),
    *("kvmpy.state.reset", "kvmpy.state.transfer"),
)
_INSIDES = (
    *("kvmpy.stats.kvm.Schema", "kvmpy.probe.verdict.judge"),
    *("kvmpy.watch.find.Peer", "kvmpy.watch.find.listed"),
)
#: Of cffi's structures, which do not leave the package.
_FOR_C = ("from_c", "fill", "to_c")
_READY_MADE = ("kvm", "vm", "cpu", "memory", "report", "sched_result")
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> Iterator[Any]:
    """All of the package's modules that are for scripts."""
    for found in pkgutil.walk_packages(kvmpy.__path__, "kvmpy."):
        if not found.name.startswith(_LEFT_OUT):
            yield importlib.import_module(found.name)


def _examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in modules():
        for test in finder.find(module, module.__name__):
            if test.examples:
                yield test


def names_of(test: doctest.DocTest) -> set[str]:
    """Which of the ready-made names an example uses."""
    source = "".join(example.source for example in test.examples)
    return {name for name in _READY_MADE if re.search(rf"\b{name}\b", source)}


def needs_kvm(test: doctest.DocTest) -> bool:
    """Whether it can only run where KVM is there."""
    source = "".join(example.source for example in test.examples)
    opens = re.search(r"\b(VM|KVM|Machine|experiment)\(", source)
    return bool(opens or names_of(test) & {"kvm", "vm", "cpu"})


def cases(kvm: bool) -> list[Any]:
    """All examples that need KVM, or all that do not, in a stable order."""
    found = [test for test in _examples() if needs_kvm(test) is kvm]
    return sorted(found, key=lambda test: test.name)


def run(test: doctest.DocTest) -> None:
    """Run one docstring's examples; raises AssertionError with doctest's report."""
    text: list[str] = []
    with contextlib.ExitStack() as stack:
        wanted = names_of(test)
        names: dict[str, Any] = {"kvmpy": kvmpy}
        if "kvm" in wanted:
            names["kvm"] = stack.enter_context(kvmpy.KVM())
        if wanted & {"vm", "cpu"}:
            names["vm"] = stack.enter_context(kvmpy.VM("16M"))
        if "cpu" in wanted:
            names["cpu"] = names["vm"].vcpu()
        if "memory" in wanted:
            names["memory"] = stack.enter_context(kvmpy.GuestMemory("16M"))
        if "report" in wanted:
            names["report"] = made_up.report()
        if "sched_result" in wanted:
            names["sched_result"] = made_up.sched_result()
        test.globs = names
        doctest.DocTestRunner(optionflags=_FLAGS).run(test, out=text.append)
        test.globs = {}
    assert not text, "".join(text)


def public_members() -> Iterator[tuple[str, Any]]:
    """(name, function) of every public function, method and property that a script can call."""
    for module in modules():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                continue
            if f"{module.__name__}.{name}" in _INSIDES:
                continue
            if inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value
            elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
                yield from _methods(value, f"{module.__name__}.{name}")


def _methods(kind: type, path: str) -> Iterator[tuple[str, Any]]:
    for name, value in vars(kind).items():
        if name.startswith("_") or name in _FOR_C:
            continue
        if isinstance(value, (staticmethod, classmethod)):
            yield f"{path}.{name}", value.__func__
        elif inspect.isfunction(value) or isinstance(value, property):
            yield f"{path}.{name}", value
