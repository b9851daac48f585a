/*
 * A vCPU's file descriptor, its kvm_run mapping, and its life.
 *
 * shim_vcpu_close() ends the vCPU; shim_vcpu_free() ends the memory. In between the mapping is
 * replaced by zero pages: a Python view that outlives close() reads zeros instead of faulting.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim.h"

/* The thread, the timer and the counters are the parent's. */
static void in_child(struct shim_at_fork *at_fork)
{
	struct shim_vcpu *vcpu = SHIM_OF_FORK(struct shim_vcpu, at_fork);

	vcpu->thread = vcpu->timer_thread = vcpu->owner = 0;
	vcpu->active = vcpu->parked = vcpu->pauses = 0;
	pthread_mutex_init(&vcpu->placing, NULL);
	pthread_mutex_init(&vcpu->brief, NULL);
	vcpu->counters = &vcpu->own_counters;
	shim_vcpu_close(vcpu);
}

struct shim_vcpu *shim_vcpu_new(int fd, size_t run_size, struct shim_bus *bus,
				uint64_t sync_supported, int *error)
{
	struct shim_vcpu *vcpu;
	void *run;

	*error = shim_kick_init();
	if (*error)
		return NULL;
	vcpu = calloc(1, sizeof(*vcpu) + 2 * sizeof(struct kvm_sync_regs));
	if (!vcpu) {
		*error = -ENOMEM;
		return NULL;
	}
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (run == MAP_FAILED) {
		*error = -errno;
		free(vcpu);
		return NULL;
	}
	vcpu->unshared = shim_unshare(run, run_size);
	if (!vcpu->unshared) {
		*error = -ENOMEM;
		munmap(run, run_size);
		free(vcpu);
		return NULL;
	}
	pthread_mutex_init(&vcpu->placing, NULL);
	pthread_mutex_init(&vcpu->brief, NULL);
	vcpu->fd = fd;
	vcpu->process = getpid();
	vcpu->run = run;
	vcpu->run_size = run_size;
	vcpu->bus = bus;
	vcpu->counters = &vcpu->own_counters;
	vcpu->sync_supported = sync_supported;
	vcpu->shadow = (struct kvm_sync_regs *)(vcpu + 1);
	vcpu->regs = sync_supported ? &vcpu->run->s.regs : vcpu->shadow + 1;
	shim_bus_join(bus, vcpu);
	shim_at_fork(&vcpu->at_fork, in_child);
	return vcpu;
}

/* Safe while another thread is in shim_run(): that run ends with SHIM_CLOSED first. */
int shim_vcpu_close(struct shim_vcpu *vcpu)
{
	struct timespec pause = { .tv_nsec = 20000 };
	int error;

	if (atomic_exchange(&vcpu->closed, 1))
		return 0;
	while (atomic_load(&vcpu->thread)) {
		shim_kick(vcpu);
		nanosleep(&pause, NULL);
	}
	if (atomic_load(&vcpu->pauses))
		shim_move_gate(vcpu);
	if (vcpu->timer_thread)
		timer_delete(vcpu->timer);
	vcpu->timer_thread = 0;
	error = shim_blank(vcpu->run, vcpu->run_size);
	if (!error)
		error = shim_dirty_detach(vcpu);
	if (error)
		return error;
	return close(vcpu->fd) ? -errno : 0;
}

/* Before its bus is freed. */
void shim_vcpu_free(struct shim_vcpu *vcpu)
{
	if (!vcpu)
		return;
	shim_vcpu_close(vcpu);
	shim_not_at_fork(&vcpu->at_fork);
	shim_bus_part(vcpu->bus, vcpu);
	shim_dirty_unmap(vcpu);
	shim_share(vcpu->unshared);
	munmap(vcpu->run, vcpu->run_size);
	pthread_mutex_destroy(&vcpu->brief);
	pthread_mutex_destroy(&vcpu->placing);
	free(vcpu->ring);
	free(vcpu);
}

/* Room for `records` deferred writes; once, before the first run. */
int shim_vcpu_ring(struct shim_vcpu *vcpu, uint64_t records)
{
	if (vcpu->ring)
		return 0;
	vcpu->ring = calloc(records, sizeof(*vcpu->ring));
	if (!vcpu->ring)
		return -ENOMEM;
	vcpu->ring_size = records;
	return 0;
}

/* Count in memory that lives as long as the vCPU does. -EBUSY: it is running. */
int shim_vcpu_count_in(struct shim_vcpu *vcpu, struct shim_counters *counters)
{
	uint32_t id = counters->id;

	if (atomic_exchange(&vcpu->active, 1))
		return -EBUSY;
	*counters = *vcpu->counters;
	counters->id = id;
	vcpu->counters = counters;
	atomic_store(&vcpu->active, 0);
	return 0;
}
