/*
 * Which pCPUs the thread of a vCPU may use, and how it is scheduled there.
 *
 * A place belongs to the vCPU: whichever thread runs it is put there, at the beginning of the run,
 * and the one that runs it now at once. sched_setaffinity(2) takes the thread's id; with the
 * process's it would be about the main thread alone.
 */
#include <errno.h>
/* Kernel headers before 6.7 define sched_param there, as the C library does. */
#define sched_param kernel_sched_param
#include <linux/sched/types.h>
#undef sched_param
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

/* Numbers of places, of all vCPUs: a thread knows by it whether it is where it should be. */
static _Atomic uint64_t last_place;
static _Thread_local uint64_t placed __attribute__((tls_model("initial-exec")));

/* The thread whose run is under way, in the guest or in a handler; 0: none. */
int shim_thread(const struct shim_vcpu *vcpu)
{
	return atomic_load(&vcpu->active) ? atomic_load(&vcpu->owner) : 0;
}

static int put(int thread, const uint8_t *mask)
{
	return syscall(SYS_sched_setaffinity, thread, SHIM_PLACE_SIZE, mask) < 0 ? -errno : 0;
}

/* `mask` has a bit for each pCPU. 0 or -errno; then the vCPU keeps the place it had. */
int shim_place(struct shim_vcpu *vcpu, const uint8_t *mask, unsigned length)
{
	uint8_t before[SHIM_PLACE_SIZE];
	int thread, error = 0;

	if (length > SHIM_PLACE_SIZE)
		return -EINVAL;
	pthread_mutex_lock(&vcpu->placing);
	memcpy(before, vcpu->mask, SHIM_PLACE_SIZE);
	memset(vcpu->mask, 0, SHIM_PLACE_SIZE);
	memcpy(vcpu->mask, mask, length);
	vcpu->places++;
	/* The number first, then the look at the thread; a run sets the thread, then looks at the
	 * number. So one of the two sees the other. */
	atomic_store(&vcpu->place, atomic_fetch_add(&last_place, 1) + 1);
	thread = shim_thread(vcpu);
	if (thread)
		error = put(thread, vcpu->mask);
	if (error == -ESRCH) /* the thread has ended meanwhile */
		error = 0;
	if (error) {
		memcpy(vcpu->mask, before, SHIM_PLACE_SIZE);
		vcpu->places--;
		atomic_store(&vcpu->place,
			     vcpu->places ? atomic_fetch_add(&last_place, 1) + 1 : 0);
	}
	pthread_mutex_unlock(&vcpu->placing);
	return error;
}

/* The calling thread is about to run the vCPU. */
int shim_take_place(struct shim_vcpu *vcpu)
{
	uint64_t number = atomic_load(&vcpu->place);
	int error;

	if (!number || number == placed)
		return 0;
	pthread_mutex_lock(&vcpu->placing);
	error = put(0, vcpu->mask);
	placed = error ? 0 : atomic_load(&vcpu->place);
	pthread_mutex_unlock(&vcpu->placing);
	return error;
}

/* sched_setattr(2), which knows all policies and nice. */
int shim_set_scheduling(int thread, const int64_t *words)
{
	struct sched_attr attr = {
		.size = SCHED_ATTR_SIZE_VER0,
		.sched_policy = words[0], .sched_flags = words[1], .sched_nice = words[2],
		.sched_priority = words[3], .sched_runtime = words[4],
		.sched_deadline = words[5], .sched_period = words[6],
	};

	return syscall(SYS_sched_setattr, thread, &attr, 0) < 0 ? -errno : 0;
}

/* As seven words: policy, flags, nice, priority, runtime, deadline, period (ns). */
int shim_get_scheduling(int thread, int64_t *words)
{
	struct sched_attr attr = { 0 };

	if (syscall(SYS_sched_getattr, thread, &attr, SCHED_ATTR_SIZE_VER0, 0) < 0)
		return -errno;
	words[0] = attr.sched_policy, words[1] = attr.sched_flags, words[2] = attr.sched_nice;
	words[3] = attr.sched_priority, words[4] = attr.sched_runtime;
	words[5] = attr.sched_deadline, words[6] = attr.sched_period;
	return 0;
}
