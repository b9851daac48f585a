"""Linux guests for tests and the bench: Debian's kernels, unmodified, and a busybox initramfs.

``kernels.py`` gets the kernels (from Debian's archive, through the rigs' cache), ``initramfs.py``
makes what they boot into, ``guest.py`` runs them in a :class:`kvmpy.Machine`.
"""
