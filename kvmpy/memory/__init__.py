"""Guest memory: host mappings, memslots, dirty pages, guest_memfd."""
