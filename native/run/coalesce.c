/*
 * Coalesced writes (KVM API, "4.116 KVM_(UN)REGISTER_COALESCED_MMIO").
 *
 * KVM keeps the guest's writes to a registered zone in a ring of one page, and exits only when it
 * is full. The page is the VM's, and each vCPU's mapping shows it: one thread at a time hands the
 * records out. That lasts until their handlers are done with them, in Python too, so that another
 * vCPU's exit never overtakes a write that its guest made before.
 */
#include <errno.h>
#include <string.h>

#include "shim.h"

#define PAGE 4096
#define RECORDS ((PAGE - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

static struct kvm_coalesced_mmio_ring *ring_of(const struct shim_vcpu *vcpu)
{
	return (void *)((uint8_t *)vcpu->run + atomic_load(&vcpu->bus->coalesced));
}

/* The ring is page `page` of every vCPU's mapping of run_size bytes: KVM_CAP_COALESCED_MMIO. */
int shim_bus_coalesce(struct shim_bus *bus, uint64_t page, uint64_t run_size)
{
	if (!page || run_size < PAGE || page > (run_size - PAGE) / PAGE)
		return -EINVAL;
	atomic_store(&bus->coalesced, page * PAGE);
	return 0;
}

/* How many records there are; -EPROTO when the indices cannot be. */
static int pending(const struct kvm_coalesced_mmio_ring *ring)
{
	uint32_t first = __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE);
	uint32_t last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);

	if (first >= RECORDS || last >= RECORDS)
		return -EPROTO;
	return (last + RECORDS - first) % RECORDS;
}

/*
 * Become the thread that hands records out: those there are now, among them all of this vCPU, and
 * none that others add meanwhile. SHIM_COALESCED_NONE when there are none, and none are being
 * handed out; -EINTR when somebody wants the vCPU out while another thread has them.
 */
int shim_coalesced_begin(struct shim_vcpu *vcpu)
{
	struct timespec pause = { .tv_nsec = 20000 };
	int self = shim_kick_thread(), found;

	if (vcpu->feeding)
		return 0; /* goes on where its last stop was */
	if (!pending(ring_of(vcpu)) && !atomic_load(&vcpu->bus->feeder))
		return SHIM_COALESCED_NONE;
	for (;;) {
		found = 0;
		if (atomic_compare_exchange_strong(&vcpu->bus->feeder, &found, self)) {
			vcpu->feeding = true;
			break;
		}
		if (found == self)
			break; /* a handler of ours runs this vCPU */
		if (shim_wanted_out(vcpu) || nanosleep(&pause, NULL))
			return -EINTR;
	}
	found = pending(ring_of(vcpu));
	vcpu->coalesced_left = found < 0 ? 1 : found; /* peek tells */
	return 0;
}

void shim_coalesced_end(struct shim_vcpu *vcpu)
{
	if (!vcpu->feeding)
		return;
	vcpu->feeding = false;
	atomic_store(&vcpu->bus->feeder, 0);
}

/* A copy of the oldest record: 1; 0 when there is none left; -EPROTO when it cannot be one. */
int shim_coalesced_peek(const struct shim_vcpu *vcpu, struct kvm_coalesced_mmio *record)
{
	const struct kvm_coalesced_mmio_ring *ring = ring_of(vcpu);
	int length = vcpu->coalesced_left ? pending(ring) : 0;

	if (length <= 0)
		return length;
	memcpy(record, &ring->coalesced_mmio[ring->first % RECORDS], sizeof(*record));
	if (!record->len || record->len > (record->pio ? 4 : sizeof(record->data)) ||
	    (record->pio && record->phys_addr > UINT16_MAX))
		return -EPROTO;
	return 1;
}

void shim_coalesced_pop(struct shim_vcpu *vcpu)
{
	struct kvm_coalesced_mmio_ring *ring = ring_of(vcpu);

	vcpu->coalesced_left--;
	__atomic_store_n(&ring->first, (ring->first + 1) % RECORDS, __ATOMIC_RELEASE);
}
