"""An open descriptor of KVM's: the one life cycle of /dev/kvm, VMs, vCPUs, devices, guest_memfds
and statistics.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from .errors import ClosedError, ForkedError

if TYPE_CHECKING:
    from typing import NoReturn, Protocol, Self

    class Inheritable(Protocol):
        """What is told that it finds itself in a fork()ed child."""

        def _in_child(self) -> None:
            """Let go of what is the parent's, of locks and of threads, and touch none of it."""

    class Connected(Protocol):
        """What knows a descriptor by its number, as a device does its VM's."""

        def disconnect(self) -> None:
            """Forget it."""

        def _assert_line(self) -> None:
            """Say again where its interrupt line is: what is at the other end was set."""

    class HasFileno(Protocol):
        """An object with a descriptor: a file, a socket, a :class:`Descriptor`."""

        def fileno(self) -> int:
            """The descriptor's number."""


#: Those that are open, by number, so that an error about a number can say whose it is.
_open: weakref.WeakValueDictionary[int, Descriptor] = weakref.WeakValueDictionary()


#: What is told of forks, by id(): some of it is a mapping, and has no hash.
_inheritable: weakref.WeakValueDictionary[int, Inheritable] = weakref.WeakValueDictionary()


def hears_of_forks(owner: Inheritable) -> None:
    """Have ``owner._in_child()`` called in every fork()ed child. The C side sees to itself, and has
    when that call comes.

    >>> kvmpy.fd.hears_of_forks(vm)
    """
    _inheritable[id(owner)] = owner


def _in_child() -> None:
    for owner in list(_inheritable.values()):
        owner._in_child()


os.register_at_fork(after_in_child=_in_child)


def gone(what: str, process: int) -> ClosedError:
    """The error for ``what`` is closed, and was made by ``process``: a ForkedError if this process
    is a child of that.

    >>> import os
    >>> kvmpy.fd.gone("VM", os.getpid())
    ClosedError('this VM is closed')
    """
    if process in (os.getpid(), Descriptor._process):
        return ClosedError(f"this {what} is closed")
    return ForkedError(
        f"this {what} was made by process {process}, and KVM binds a VM to its process: make a new "
        f"one in process {os.getpid()}"
    )


class Owner:
    """What owns something of the kernel's or the shim's. It cannot be copied or pickled: two
    objects would own the same, and the first to go would take it from the other.
    """

    __slots__ = ()

    def __reduce__(self) -> NoReturn:  # copy.copy() asks for it, too
        raise TypeError(f"{type(self).__name__} objects cannot be copied or pickled")


class Descriptor(Owner):
    """What owns a descriptor: open from its making to :meth:`close`, the end of a ``with`` block,
    or the loss of the last reference.
    """

    _fd = -1
    #: The process that made it: KVM binds a VM, and all that is of it, to that one.
    _process = -1
    #: What knows it by its number, by id().
    _connected: weakref.WeakValueDictionary[int, Connected] | None = None
    #: What it is, for messages.
    _what = "descriptor"

    def _opened(self, fd: int, vm_fd: int = -1) -> None:
        """The descriptor is ``fd`` from now on; ``vm_fd`` is that of the VM it belongs to."""
        self._fd = fd
        self._process = os.getpid()
        #: The VM answers KVM_CHECK_EXTENSION, its vCPUs and devices do not.
        self._vm_fd = vm_fd
        _open[fd] = self
        hears_of_forks(self)

    def _in_child(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def fileno(self) -> int:
        """The descriptor's number. Raises ClosedError after :meth:`close`, ForkedError in a child
        process.

        >>> kvmpy.ioctls.KVM_CHECK_EXTENSION(vm.fileno(), 0)
        1
        """
        if self._fd < 0:
            raise gone(self._what, self._process)
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether it has been closed.

        >>> vm.closed
        False
        """
        return self._fd < 0

    def close(self) -> None:
        """Close it; a second time does nothing.

        >>> with kvmpy.KVM() as other:
        ...     pass
        >>> other
        <KVM, closed>
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            for connected in self._knowing():
                connected.disconnect()  # before the number can be another's
            os.close(fd)

    def _knowing(self) -> list[Connected]:
        """What knows it by its number."""
        return [] if self._connected is None else list(self._connected.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            self.close()


def number_of(source: int | HasFileno) -> int:
    """The number of a descriptor, or of what has one.

    >>> kvmpy.fd.number_of(3)
    3
    """
    return source if isinstance(source, int) else source.fileno()


def owner_of(fd: int) -> Descriptor | None:
    """The object that has ``fd`` open; None if it is none of ours.

    >>> kvmpy.fd.owner_of(vm.fileno()) is vm
    True
    """
    found = _open.get(fd)
    return found if found is not None and found._fd == fd else None


def known_to(fd: int, connected: Connected) -> None:
    """Have ``connected.disconnect()`` called before the object that has ``fd`` open closes it.

    >>> kvmpy.fd.known_to(vm.fileno(), kvmpy.Uart())
    """
    owner = owner_of(fd)
    if owner is not None:
        if owner._connected is None:
            owner._connected = weakref.WeakValueDictionary()
        owner._connected[id(connected)] = connected
