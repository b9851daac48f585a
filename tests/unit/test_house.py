"""The layout of the classes: real bases, topics that share no name, VM and VCPU that only put them
together. Which file may import which is import-linter's (pyproject.toml, ``make lint``)."""

import copy
import inspect
import itertools
import pickle
import typing

import pytest

import kvmpy
from kvmpy.fd import Descriptor
from kvmpy.vcpu_fd import VcpuFd
from kvmpy.vm_fd import VmFd


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
