/*
 * An exit goes to who owns its address: a C device, a counter, the ring of deferred writes, Python.
 */
#include <string.h>
#include <x86intrin.h>

#include "access.h"

/* False for an exit that is not an access, or one that does not fit the mapping it came in. */
bool shim_access_describe(struct shim_vcpu *vcpu, struct access *access)
{
	struct kvm_run *run = vcpu->run;

	if (run->exit_reason == KVM_EXIT_IO) {
		access->address = run->io.port;
		access->size = run->io.size;
		access->count = run->io.count;
		access->is_write = run->io.direction == KVM_EXIT_IO_OUT;
		access->is_mmio = false;
		if (access->size > sizeof(uint64_t) || run->io.data_offset > vcpu->run_size ||
		    (uint64_t)access->size * access->count > vcpu->run_size - run->io.data_offset)
			return false;
		access->data = (uint8_t *)run + run->io.data_offset;
		return true;
	}
	if (run->exit_reason == KVM_EXIT_MMIO) {
		access->address = run->mmio.phys_addr;
		access->size = run->mmio.len;
		access->count = 1;
		access->is_write = run->mmio.is_write;
		access->is_mmio = true;
		access->data = run->mmio.data;
		return run->mmio.len <= sizeof(run->mmio.data);
	}
	return false;
}

static uint64_t value_of(const struct access *access, unsigned element)
{
	uint64_t value = 0;

	memcpy(&value, access->data + element * access->size, access->size);
	return value;
}

static bool to_ring(struct shim_vcpu *vcpu, const struct access *access, unsigned element,
		    uint32_t handler)
{
	struct shim_record *record;

	if (vcpu->ring_length == vcpu->ring_size)
		return false;
	if (!vcpu->ring_length)
		__atomic_store_n(&vcpu->ring_looking, atomic_load(&vcpu->looking), __ATOMIC_SEQ_CST);
	record = &vcpu->ring[vcpu->ring_length];
	__atomic_store_n(&vcpu->ring_length, vcpu->ring_length + 1, __ATOMIC_RELEASE);
	record->address = access->address;
	record->value = value_of(access, element);
	record->size = access->size | (uint64_t)handler << 16 | (uint64_t)access->is_mmio << 63;
	record->tsc = __rdtsc();
	return true;
}

/* The stop that has Python answer it: the access is in vcpu->report. */
int shim_access_report(struct shim_vcpu *vcpu, const struct access *access, unsigned element,
		     uint32_t handler)
{
	vcpu->report.handler = handler;
	vcpu->report.address = access->address;
	vcpu->report.size = access->size;
	vcpu->report.is_write = access->is_write;
	vcpu->report.value = value_of(access, element);
	vcpu->pending = access->is_write ? SHIM_PENDING_COMPLETE : SHIM_PENDING_REPLY;
	return SHIM_ACCESS;
}

/* One element of an access, to the owner of its address. SHIM_CONTINUE: it is settled. */
int shim_access_deliver(struct shim_vcpu *vcpu, const struct shim_range *range,
		       const struct access *access, unsigned element)
{
	struct shim_device *device = range->object;
	struct shim_counter *counter = range->object;

	switch (range->owner) {
	case SHIM_OWNER_DEVICE:
		return device->access(device, vcpu, access->address - range->first,
				      access->data + element * access->size, access->size,
				      access->is_write);
	case SHIM_OWNER_COUNTER:
		__atomic_fetch_add(access->is_write ? &counter->writes : &counter->reads, 1,
				   __ATOMIC_RELAXED);
		return SHIM_CONTINUE;
	case SHIM_OWNER_RING: /* a read cannot wait for Python: it gives all ones */
		return access->is_write && !to_ring(vcpu, access, element, range->handler) ? SHIM_RING
									    : SHIM_CONTINUE;
	case SHIM_OWNER_PYTHON:
		return shim_access_report(vcpu, access, element, range->handler);
	}
	return SHIM_EXIT;
}

static int dispatch_eoi(struct shim_vcpu *vcpu, uint8_t vector)
{
	struct shim_ioapic *ioapic;

	shim_bus_look(vcpu);
	ioapic = atomic_load(&vcpu->bus->ioapic);
	return ioapic ? shim_ioapic_eoi(ioapic, vcpu, vector) : SHIM_EXIT;
}

/* Any exit but an access. MSRs can have a Python handler, EOIs are the I/O APIC's; all others end
 * the run. */
static int dispatch_other(struct shim_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	bool is_write = run->exit_reason == KVM_EXIT_X86_WRMSR;
	const struct shim_range *range;

	vcpu->pending = shim_reply_begin(run);
	if (run->exit_reason == KVM_EXIT_IOAPIC_EOI)
		return dispatch_eoi(vcpu, run->eoi.vector);
	if (!is_write && run->exit_reason != KVM_EXIT_X86_RDMSR)
		return SHIM_EXIT;
	range = shim_bus_find(vcpu, is_write ? SHIM_WRMSR : SHIM_RDMSR, run->msr.index);
	if (!range) {
		if (run->msr.reason != KVM_MSR_EXIT_REASON_FILTER ||
		    !atomic_load(&vcpu->bus->quiet_msrs))
			return SHIM_EXIT;
		shim_refuse(vcpu);
		return SHIM_CONTINUE;
	}
	vcpu->report.handler = range->handler;
	vcpu->report.address = run->msr.index;
	vcpu->report.size = sizeof(run->msr.data);
	vcpu->report.is_write = is_write;
	vcpu->report.value = run->msr.data;
	return SHIM_MSR;
}

/* Hand the exit in kvm_run to whoever owns its address, from string element `first` on. */
int shim_dispatch(struct shim_vcpu *vcpu, unsigned first)
{
	const struct shim_range *range;
	struct access access;
	int stop = SHIM_CONTINUE;

	vcpu->elements = 0;
	if (unlikely(!shim_access_describe(vcpu, &access)))
		return dispatch_other(vcpu);
	/* Before anyone answers, or an unclaimed read would hand out the previous exit's bytes. */
	if (!access.is_write && !first)
		memset(access.data, 0xff, access.size * access.count);
	range = shim_bus_find(vcpu, access.is_mmio, access.address);
	if (unlikely(!range)) {
		vcpu->pending = access.is_write ? SHIM_PENDING_COMPLETE : SHIM_PENDING_REPLY;
		return SHIM_EXIT;
	}
	vcpu->pending = SHIM_PENDING_COMPLETE;
	vcpu->elements = access.count;
	for (vcpu->element = first; vcpu->element < access.count; vcpu->element++) {
		stop = shim_access_deliver(vcpu, range, &access, vcpu->element);
		if (stop != SHIM_CONTINUE)
			break;
	}
	return stop;
}
