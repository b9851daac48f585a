"""Rigs: real kvm_amd and real kvm_intel on a machine that has neither.

``svm``: QEMU's TCG emulates an AMD CPU with SVM and nested paging.  ``vmx``: Bochs emulates an
Intel CPU with VT-x, EPT and unrestricted guest.  Debian's kernel runs in both, loads its own KVM
module, and runs one command.

``run.py`` is the command; ``table.py`` joins the JUnit files of several runs.  A run goes through
``host.py`` (packages, cache), ``kernel.py``, ``guest.py`` (/init), ``svm.py`` or ``vmx.py`` and
``vmxroot.py`` (the emulator and its root), and ``session.py`` (serial ports, limit, outcome).
Python's standard library only: the host's ``python3`` runs it before anything is installed.
"""
