/*
 * Accesses to ports and MMIO: what a KVM_RUN came back with, and who answers it (access.c).
 */
#ifndef KVMPY_ACCESS_H
#define KVMPY_ACCESS_H

#include "shim.h"

#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

/* `count` elements of `size` bytes at `data`, all to one `address` (INS, OUTS: count > 1). */
struct access {
	uint64_t address;
	uint8_t *data;
	unsigned size, count;
	bool is_write, is_mmio;
};

/* The vCPU has no more to do with what it found in the tables. */
static inline void shim_looked(struct shim_vcpu *vcpu)
{
	atomic_store_explicit(&vcpu->looking, 0, memory_order_release);
}

bool shim_access_describe(struct shim_vcpu *vcpu, struct access *access);
int shim_access_deliver(struct shim_vcpu *vcpu, const struct shim_range *range,
			const struct access *access, unsigned element);
int shim_access_report(struct shim_vcpu *vcpu, const struct access *access, unsigned element,
		       uint32_t handler);
int shim_dispatch(struct shim_vcpu *vcpu, unsigned first);

#endif
