/*
 * A vCPU's dirty ring, as user space has it (KVM API, "8.29 KVM_CAP_DIRTY_LOG_RING").
 *
 * KVM publishes an entry by setting F_DIRTY last and takes it back when it finds F_RESET: what lies
 * between belongs to us, so the flag is read with acquire and set with release.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim.h"

static size_t bytes_of(const struct shim_vcpu *vcpu)
{
	return (size_t)vcpu->dirty_entries * sizeof(struct kvm_dirty_gfn);
}

/* Once per vCPU. `entries` is a power of two, as KVM_ENABLE_CAP was told. */
int shim_dirty_map(struct shim_vcpu *vcpu, uint32_t entries)
{
	size_t size = (size_t)entries * sizeof(struct kvm_dirty_gfn);
	void *ring;

	if (vcpu->dirty)
		return -EEXIST;
	if (!entries || entries & (entries - 1))
		return -EINVAL;
	ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd,
		    (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * sysconf(_SC_PAGESIZE));
	if (ring == MAP_FAILED)
		return -errno;
	vcpu->dirty_unshared = shim_unshare(ring, size);
	if (!vcpu->dirty_unshared) {
		munmap(ring, size);
		return -ENOMEM;
	}
	vcpu->dirty = ring;
	vcpu->dirty_entries = entries;
	return 0;
}

/* The vCPU ends. Whoever harvests now or later finds zero pages: no entries. */
int shim_dirty_detach(struct shim_vcpu *vcpu)
{
	return vcpu->dirty ? shim_blank(vcpu->dirty, bytes_of(vcpu)) : 0;
}

void shim_dirty_unmap(struct shim_vcpu *vcpu)
{
	shim_share(vcpu->dirty_unshared);
	vcpu->dirty_unshared = NULL;
	if (vcpu->dirty)
		munmap(vcpu->dirty, bytes_of(vcpu));
	vcpu->dirty = NULL;
}

/* Moves up to `room` entries to `words`, two a piece: slot and offset. How many those were. */
unsigned shim_dirty_harvest(struct shim_vcpu *vcpu, uint64_t *words, unsigned room)
{
	unsigned count;

	if (!vcpu->dirty)
		return 0;
	for (count = 0; count < room; count++) {
		struct kvm_dirty_gfn *entry =
			&vcpu->dirty[vcpu->dirty_next & (vcpu->dirty_entries - 1)];

		if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		*words++ = entry->slot;
		*words++ = entry->offset;
		__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		vcpu->dirty_next++;
	}
	return count;
}
