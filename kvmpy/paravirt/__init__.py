"""Xen and Hyper-V: what KVM offers guests that know they are guests."""
