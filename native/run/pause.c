/*
 * Pausing: a vCPU out of the guest, and kept out until everybody who asked for it is through.
 *
 * A pause is a count, and a flag and a signal as for a kick. The run does not end by it: it stops
 * with SHIM_PAUSED, gives its registers to whoever asks, says so (`parked`), and its thread waits in
 * shim_park() until the count is 0 again. None of that takes the GIL, so that a vCPU is out when
 * shim_pause_wait() says so, however busy Python is. Who waits, on either side, waits for the
 * vCPU's `gate` to move; everything that could end a wait moves it.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

_Static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t), "a futex is 32 bits");

void shim_move_gate(struct shim_vcpu *vcpu)
{
	atomic_fetch_add(&vcpu->gate, 1);
	syscall(SYS_futex, &vcpu->gate, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Until the gate is no longer at `seen`; until: CLOCK_MONOTONIC ns, 0: for ever. -EINTR: a signal,
 * else 0, which may be for nothing. */
static int wait_at_gate(struct shim_vcpu *vcpu, uint32_t seen, int64_t until)
{
	struct timespec when = { .tv_sec = until / 1000000000, .tv_nsec = until % 1000000000 };

	if (syscall(SYS_futex, &vcpu->gate, FUTEX_WAIT_BITSET_PRIVATE, seen, until ? &when : NULL,
		    NULL, FUTEX_BITSET_MATCH_ANY) < 0 && errno == EINTR)
		return -EINTR;
	return 0;
}

/* What ends the run under way, SHIM_CONTINUE for nothing. A kick is taken by it. */
int shim_ending(struct shim_vcpu *vcpu)
{
	if (atomic_load(&vcpu->closed))
		return SHIM_CLOSED;
	if (atomic_exchange(&vcpu->kicked, 0)) {
		vcpu->report.value = 0;
		return SHIM_KICKED;
	}
	vcpu->report.value = atomic_exchange(&vcpu->signalled, 0);
	if (vcpu->report.value)
		return SHIM_KICKED;
	if (vcpu->deadline && shim_now() >= vcpu->deadline)
		return SHIM_TIMEOUT;
	return SHIM_CONTINUE;
}

/* Any thread. The count first: who lowers the flag looks at it afterwards. */
void shim_pause(struct shim_vcpu *vcpu)
{
	atomic_fetch_add(&vcpu->pauses, 1);
	shim_get_out(vcpu);
}

unsigned shim_pauses(const struct shim_vcpu *vcpu)
{
	return atomic_load(&vcpu->pauses);
}

/* Take back one pause of each; all of them go on at once, with no look at the GIL in between. How
 * many were not paused. */
unsigned shim_unpause(struct shim_vcpu *const *vcpus, unsigned count)
{
	unsigned none = 0;

	for (unsigned i = 0; i < count; i++) {
		int pauses = atomic_load(&vcpus[i]->pauses);

		while (pauses && !atomic_compare_exchange_weak(&vcpus[i]->pauses, &pauses,
							       pauses - 1))
			;
		none += !pauses;
		if (pauses == 1)
			shim_move_gate(vcpus[i]);
	}
	return none;
}

/*
 * After shim_pause(), until the vCPU is out of the guest and no exit of it is being handled. With
 * `in_a_run` a vCPU that nobody runs does not count as out: its thread is still to come. 0: it is
 * (or it is closed, or no longer paused); 1: it is `until` (CLOCK_MONOTONIC ns); -EINTR: a signal.
 */
int shim_pause_wait(struct shim_vcpu *vcpu, int64_t until, bool in_a_run)
{
	for (;;) {
		uint32_t gate = atomic_load(&vcpu->gate);

		if (atomic_load(&vcpu->parked) || atomic_load(&vcpu->closed) ||
		    !atomic_load(&vcpu->pauses) || (!in_a_run && !atomic_load(&vcpu->active)))
			return 0;
		if (shim_now() >= until)
			return 1;
		if (wait_at_gate(vcpu, gate, until))
			return -EINTR;
	}
}

/* A pause that has been asked for: until the vCPU is out of its run. False: it is not, and it is
 * `until` (CLOCK_MONOTONIC ns), or nobody asks any longer. */
bool shim_await_pause(struct shim_vcpu *vcpu, int64_t until)
{
	for (;;) {
		uint32_t gate = atomic_load(&vcpu->gate);

		if (atomic_load(&vcpu->parked) || !atomic_load(&vcpu->active))
			return true;
		if (!atomic_load(&vcpu->pauses) || atomic_load(&vcpu->closed) || shim_now() >= until)
			return false;
		wait_at_gate(vcpu, gate, until);
	}
}

/* The thread of a run that has stopped with SHIM_PAUSED: wait. SHIM_PAUSED: still paused, and there
 * was a signal that Python may have a handler for; SHIM_CONTINUE: not any longer; else what ends the
 * run. */
int shim_park(struct shim_vcpu *vcpu)
{
	uint32_t gate = atomic_load(&vcpu->gate);
	bool signal_seen = shim_kick_attend(vcpu);
	int stop = shim_ending(vcpu);

	if (stop == SHIM_CONTINUE && atomic_load(&vcpu->pauses)) {
		if (!signal_seen)
			wait_at_gate(vcpu, gate, 0);
		stop = shim_ending(vcpu);
		if (stop == SHIM_CONTINUE && atomic_load(&vcpu->pauses))
			stop = SHIM_PAUSED;
	}
	shim_kick_ignore();
	return stop;
}
