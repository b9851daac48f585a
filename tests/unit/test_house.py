"""The layout of the classes: real bases, topics that share no name, VM and VCPU that only put them
together. Which file may import which is import-linter's (pyproject.toml, ``make lint``)."""

import ast
import copy
import inspect
import itertools
import pickle
import typing
from pathlib import Path

import pytest

import kvmpy
from kvmpy.fd import Descriptor
from kvmpy.vcpu_fd import VcpuFd
from kvmpy.vm_fd import VmFd

PACKAGE = Path(kvmpy.__file__).parent


def own_names(kind: type) -> set[str]:
    """Public names that the class itself defines."""
    return {
        name for name in (*vars(kind), *inspect.get_annotations(kind)) if not name.startswith("_")
    }


def topics(kind: type, root: type) -> list[type]:
    """The bases of a class that are built on ``root``, neither of the two among them."""
    return [base for base in kind.__mro__[1:] if issubclass(base, root) and base is not root]


@pytest.mark.parametrize(("kind", "root"), [(kvmpy.VM, VmFd), (kvmpy.VCPU, VcpuFd)])
def test_no_two_topics_define_the_same_name(kind: type, root: type) -> None:
    """The second would be dead, and nobody would notice."""
    found = topics(kind, root)
    assert len(found) > 8
    for one, other in itertools.combinations(found, 2):
        assert own_names(one) & own_names(other) == set(), (one, other)
    for topic in found:
        assert own_names(topic) & (own_names(root) | own_names(Descriptor)) == set(), topic


@pytest.mark.parametrize("kind", [kvmpy.VM, kvmpy.VCPU])
def test_a_class_of_topics_is_short(kind: type) -> None:
    """Well under 300 lines."""
    assert len(inspect.getsourcelines(kind)[0]) < 260


@pytest.mark.parametrize("kind", [kvmpy.VM, kvmpy.VCPU, kvmpy.KVM, kvmpy.Device, kvmpy.GuestMemfd])
def test_every_owner_of_a_descriptor_has_one_life_cycle(kind: type) -> None:
    """fileno(), closed and the with block are Descriptor's alone."""
    assert issubclass(kind, Descriptor)
    for base in kind.__mro__:
        if base not in (Descriptor, object):
            assert not {"fileno", "closed", "__enter__", "__exit__"} & set(vars(base)), base


def test_a_descriptor_is_not_copied_or_pickled() -> None:
    """Two objects would own it, and the first to go would close it under the other."""
    owner = Descriptor()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            attempt(owner)


def test_nothing_declares_again_what_its_base_has() -> None:
    """No stand-in for a type checker's sake among the topics."""
    for kind in (kvmpy.VM, kvmpy.VCPU):
        for base in kind.__mro__[1:-1]:
            assert "TYPE_CHECKING" not in inspect.getsource(base), base
    assert typing.TYPE_CHECKING is False


# ---------------------------------------------------------------- which file knows which


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, anywhere in it, for types too."""
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path
    found: dict[str, set[str]] = {}
    for module, path in sources.items():
        here = module if path.name == "__init__.py" else module.rpartition(".")[0]
        known = found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = here.split(".")[: len(here.split(".")) - node.level + 1]
            where = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                known.add(f"{where}.{alias.name}" if f"{where}.{alias.name}" in sources else where)
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which leads to every other."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    leads = {module: reached(module) for module in graph}
    return [
        {other for other in leads[module] if module in leads.get(other, ())}
        for module in graph
        if module in leads[module]
    ]


def test_no_circle_but_vm_and_vcpu() -> None:
    """Parent and child know each other; nobody else does."""
    graph = imports()
    assert graph["kvmpy.machine.machine"] >= {"kvmpy.vm", "kvmpy.vcpu"}
    graph = {module: known - {"kvmpy"} for module, known in graph.items() if module != "kvmpy"}
    assert {frozenset(circle) for circle in circles(graph)} == {
        frozenset({"kvmpy.vm", "kvmpy.vcpu"})
    }


def test_a_circle_is_found() -> None:
    """What the test above rests on."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [set("abc")] * 3
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_imports_in_the_package_are_relative() -> None:
    """One dialect."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith("kvmpy"), (path, node.lineno)


def test_the_shim_has_one_door() -> None:
    """And a second for what is measured of the host."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if path.name != "shim.py":
            assert "import _native" not in text, path
            assert "_native import" not in text, path
