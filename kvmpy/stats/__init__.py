"""Statistics: KVM's own counters, and what came out to user space."""
