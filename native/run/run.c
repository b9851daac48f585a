/*
 * The KVM_RUN loop.
 *
 * shim_run() enters the guest until something happens that C cannot settle. Stops of the first
 * group (enum shim_stop) leave the run open: the caller settles them and calls shim_resume().
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "access.h"

/* ------------------------------------------------------------------ entering the guest */

static void account_handling(struct shim_vcpu *vcpu, int64_t now)
{
	if (vcpu->returned_at)
		vcpu->counters->handling_ns[vcpu->returned_with] += now - vcpu->returned_at;
	vcpu->returned_at = 0;
}

/* Nothing before finishes after it, nothing behind starts before it. */
static uint64_t tsc_now(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static int timed_kvm_run(struct shim_vcpu *vcpu)
{
	int64_t before = shim_now();
	int result, saved;

	account_handling(vcpu, before);
	vcpu->entry_tsc = tsc_now();
	result = ioctl(vcpu->fd, KVM_RUN, 0);
	saved = errno;
	vcpu->exit_tsc = tsc_now();
	vcpu->returned_at = shim_now();
	vcpu->returned_with = result < 0 ? 0 : vcpu->run->exit_reason % SHIM_EXIT_REASONS;
	vcpu->counters->guest_ns += vcpu->returned_at - before;
	errno = saved;
	return result;
}

/*
 * Registers were edited while their instruction was unfinished (a read before its answer, the
 * first half of an access): it is finished with the registers it began with, since KVM's emulator
 * would lose either its result or the edit, and the edit comes on top. -EINTR, or 0 for a further
 * exit of the same instruction.
 */
static int finish_before_edits(struct shim_vcpu *vcpu)
{
	struct kvm_sync_regs edited = *vcpu->regs, before = *vcpu->shadow;
	uint64_t fields = shim_edited(vcpu);
	int result, error;

	*vcpu->regs = before;
	vcpu->accessed |= fields;
	result = shim_hand_over_registers(vcpu);
	if (result < 0)
		return result;
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	result = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
	shim_take_registers(vcpu);
	error = shim_fetch(vcpu, fields);
	if (error)
		return error;
	shim_repeat_edits(vcpu, fields, &edited, &before);
	return result;
}

static int kvm_run(struct shim_vcpu *vcpu)
{
	int result = 0;

	shim_looked(vcpu);
	if (unlikely(!vcpu->handed_over)) {
		if (unlikely(vcpu->pending != SHIM_PENDING_NONE && shim_edited(vcpu)))
			return finish_before_edits(vcpu);
		result = shim_hand_over_registers(vcpu);
	}
	if (unlikely(result < 0))
		return result;
	/* Stale after a failure, so that only a KVM that wrote it can make it MEMORY_FAULT. */
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	result = unlikely(vcpu->timing) ? timed_kvm_run(vcpu) : ioctl(vcpu->fd, KVM_RUN, 0);
	if (unlikely(result < 0)) {
		result = -errno;
		shim_set_untaken_edits(vcpu, result);
	}
	return result;
}

/* immediate_exit := 0, without losing a kick that comes at this very moment: the kicker sets
 * `kicked` first and the flag second. */
static void lower_flag(struct shim_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	if (atomic_load(&vcpu->kicked) || atomic_load(&vcpu->signalled) ||
	    atomic_load(&vcpu->pauses))
		__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

static int flush(struct shim_vcpu *vcpu)
{
	int error = shim_bus_flush(vcpu);

	/* From now, not from before the wait: the guest is to get on meanwhile. */
	vcpu->flush_at = error == -EAGAIN ? shim_now() + SHIM_FLUSH_NS : 0;
	if (error && error != -EAGAIN) {
		vcpu->report.value = -error;
		return SHIM_SINK_ERROR;
	}
	shim_kick_arm(vcpu);
	return SHIM_CONTINUE;
}

/* KVM_RUN gave EINTR: who wanted it? */
static int interrupted(struct shim_vcpu *vcpu)
{
	bool paused;
	int stop;

	__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	vcpu->pending = SHIM_PENDING_NONE; /* it is completed before the flag is looked at */
	stop = shim_ending(vcpu);
	if (stop != SHIM_CONTINUE)
		return stop;
	paused = atomic_load(&vcpu->pauses); /* the output is not to wait for its end */
	if (!vcpu->flush_at || (!paused && shim_now() < vcpu->flush_at))
		return paused ? SHIM_PAUSED : SHIM_SIGNAL;
	stop = flush(vcpu);
	return stop == SHIM_CONTINUE && paused ? SHIM_PAUSED : stop;
}

static int failed(struct shim_vcpu *vcpu, int error)
{
	if (error == -EINTR)
		return interrupted(vcpu);
	if (error == -EAGAIN) /* an application processor got its INIT or SIPI: enter again */
		return SHIM_CONTINUE;
	if (error == -ENOMEM && !vcpu->entered) {
		/* KVM starts a worker thread at the first entry; a signal at that moment fails it. */
		vcpu->entered = true;
		return SHIM_CONTINUE;
	}
	if ((error == -EFAULT || error == -EHWPOISON) &&
	    vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		return SHIM_EXIT;
	vcpu->report.value = -error;
	return SHIM_ERROR;
}

/* ------------------------------------------------------------------ coalesced writes */

static int deliver(struct shim_vcpu *vcpu, struct kvm_coalesced_mmio *record)
{
	struct access access = {
		.address = record->phys_addr, .data = record->data, .size = record->len,
		.count = 1, .is_write = true, .is_mmio = !record->pio,
	};
	const struct shim_range *range = shim_bus_find(vcpu, access.is_mmio, access.address);
	enum shim_pending pending = vcpu->pending;
	int stop;

	if (range) {
		stop = shim_access_deliver(vcpu, range, &access, 0);
	} else {
		shim_access_report(vcpu, &access, 0, access.is_mmio);
		stop = SHIM_WRITE;
	}
	vcpu->pending = pending; /* the guest's instruction has long been finished */
	return stop;
}

/* Hand out what the ring holds, before anything else that came of this KVM_RUN. SHIM_FED when that
 * is done; else a stop, or SHIM_CONTINUE to come again. */
#define SHIM_FED (-2)
static int feed(struct shim_vcpu *vcpu)
{
	struct kvm_coalesced_mmio record;
	int stop = shim_coalesced_begin(vcpu), found;

	if (likely(stop == SHIM_COALESCED_NONE))
		return SHIM_FED;
	if (stop == -EINTR)
		return interrupted(vcpu);
	while ((found = shim_coalesced_peek(vcpu, &record)) > 0) {
		if (vcpu->stalled)
			return shim_wanted_out(vcpu) ? interrupted(vcpu) : SHIM_CONTINUE;
		stop = deliver(vcpu, &record);
		if (stop != SHIM_RING) /* which has not taken it */
			shim_coalesced_pop(vcpu);
		if (stop != SHIM_CONTINUE)
			return stop;
	}
	shim_coalesced_end(vcpu);
	if (!found)
		return SHIM_FED;
	vcpu->report.value = -found;
	return SHIM_ERROR;
}

/* As feed(). The exit of this KVM_RUN waits until all is handed out; its errors, EINTR among them,
 * come again by themselves. */
static int feed_first(struct shim_vcpu *vcpu, int result)
{
	int stop;

	vcpu->elements = 0; /* of the exit before */
	if (result >= 0 || result == -EINTR)
		vcpu->pending = SHIM_PENDING_NONE;
	stop = feed(vcpu);
	if (stop != SHIM_FED)
		vcpu->deferred = result >= 0;
	return stop;
}

/* ------------------------------------------------------------------ the loop */

static int step(struct shim_vcpu *vcpu)
{
	int result = 0;

	if (unlikely(vcpu->deferred))
		vcpu->deferred = false;
	else
		result = kvm_run(vcpu);
	if (unlikely(vcpu->bus->coalesced)) {
		int stop = feed_first(vcpu, result);

		if (stop != SHIM_FED)
			return stop;
	}
	if (unlikely(result < 0))
		return failed(vcpu, result);
	vcpu->entered = true;
	vcpu->pending = SHIM_PENDING_NONE;
	vcpu->counters->exits[vcpu->run->exit_reason % SHIM_EXIT_REASONS]++;
	if (unlikely(!vcpu->first_exit_at))
		vcpu->first_exit_at = shim_now();
	vcpu->exits_left--;
	return shim_dispatch(vcpu, 0);
}

static int loop(struct shim_vcpu *vcpu)
{
	int stop = SHIM_CONTINUE;

	while (likely(stop == SHIM_CONTINUE)) {
		if (unlikely(vcpu->stalled)) {
			stop = shim_sink_wait(vcpu);
			if (stop != SHIM_CONTINUE)
				break;
		}
		if (unlikely(!vcpu->exits_left))
			stop = SHIM_EXIT_LIMIT;
		else
			stop = step(vcpu);
	}
	return stop;
}

static bool is_resumable(int stop)
{
	return stop < SHIM_EXIT;
}

/* Not about an exit. */
static bool is_interruption(int stop)
{
	return stop == SHIM_SIGNAL || stop == SHIM_PAUSED;
}

/* Deadlines can pass while Python has the exit; our signal finds no vCPU on the thread then. */
static void overdue(struct shim_vcpu *vcpu)
{
	int64_t now;

	if (likely(!vcpu->deadline && !vcpu->flush_at))
		return;
	now = shim_now();
	if ((vcpu->deadline && now >= vcpu->deadline) ||
	    (vcpu->flush_at && now >= vcpu->flush_at))
		vcpu->run->immediate_exit = 1; /* finishes the pending access, then EINTR */
}

/* The run is over. Its thread's id goes first: nobody is to take it for the next one's. */
static void end(struct shim_vcpu *vcpu)
{
	shim_looked(vcpu);
	vcpu->counters->running = SHIM_IDLE;
	atomic_store_explicit(&vcpu->parked, 0, memory_order_release);
	atomic_store_explicit(&vcpu->owner, 0, memory_order_release);
	atomic_store(&vcpu->active, 0);
	if (unlikely(atomic_load(&vcpu->pauses)))
		shim_move_gate(vcpu);
}

/*
 * A deadline that passes before the guest has done anything would pass in the next run as well, and
 * in all that follow: each gives the guest some time, and more when that was not enough for an
 * exit. Hosts differ a hundredfold in what an entry takes.
 */
#define GRACE_NS 50000
#define MOST_GRACE_NS 400000

static void adapt_grace(struct shim_vcpu *vcpu)
{
	if (vcpu->stop != SHIM_TIMEOUT || vcpu->exits_left != vcpu->exits_given)
		vcpu->grace = GRACE_NS;
	else if (vcpu->grace < MOST_GRACE_NS)
		vcpu->grace = vcpu->grace ? 2 * vcpu->grace : GRACE_NS;
}

static void wind_up(struct shim_vcpu *vcpu)
{
	int error = shim_bus_flush(vcpu);

	adapt_grace(vcpu);
	vcpu->deadline = 0;
	vcpu->flush_at = 0;
	vcpu->elements = 0; /* what is left of a string ends with the run */
	shim_coalesced_end(vcpu);
	if (vcpu->armed_for && !atomic_load(&vcpu->closed))
		shim_kick_arm(vcpu);
	vcpu->flush_error = error == -EAGAIN ? 0 : error;
	end(vcpu);
}

static int enter(struct shim_vcpu *vcpu)
{
	int error = shim_kick_enter(vcpu);

	if (error)
		return error;
	if (atomic_load(&vcpu->closed)) {
		shim_kick_leave(vcpu);
		return -EBADF;
	}
	return 0;
}

/* A run is ours alone: who has the vCPU reads registers for another thread, for a moment. */
static int enter_run(struct shim_vcpu *vcpu)
{
	int error;

	pthread_mutex_lock(&vcpu->brief);
	error = enter(vcpu);
	pthread_mutex_unlock(&vcpu->brief);
	return error;
}

/* The caller has had the vCPU since leave(). */
static void account_caller(struct shim_vcpu *vcpu)
{
	if (likely(!vcpu->timing))
		return;
	if (vcpu->left_at)
		vcpu->counters->python_ns += shim_now() - vcpu->left_at;
	vcpu->left_at = 0;
}

static int leave(struct shim_vcpu *vcpu, int stop)
{
	shim_take_registers(vcpu);
	if (unlikely(vcpu->timing))
		vcpu->left_at = shim_now();
	vcpu->stop = stop;
	if (!is_resumable(stop))
		wind_up(vcpu);
	shim_kick_leave(vcpu);
	if (unlikely(stop == SHIM_PAUSED)) {
		shim_coalesced_end(vcpu); /* other vCPUs may go on */
		vcpu->counters->running = SHIM_PARKED;
		atomic_store(&vcpu->parked, 1);
		shim_move_gate(vcpu);
	}
	return stop;
}

static int refused(struct shim_vcpu *vcpu, int error)
{
	vcpu->report.value = -error;
	return error == -EBADF ? SHIM_CLOSED : SHIM_ERROR;
}

/* When the run is to end, 0: never. A deadline of 0 ns from now is a look, and no run. */
static int64_t deadline_of(const struct shim_vcpu *vcpu, int64_t timeout_ns)
{
	if (timeout_ns < 0)
		return 0;
	if (timeout_ns && timeout_ns < vcpu->grace)
		timeout_ns = vcpu->grace;
	return shim_now() + timeout_ns;
}

/*
 * Run until something stops it: timeout_ns < 0 means no deadline, max_exits UINT64_MAX no limit.
 * SHIM_BUSY: the vCPU is running already.
 */
int shim_run(struct shim_vcpu *vcpu, int64_t timeout_ns, uint64_t max_exits)
{
	int error;

	if (atomic_exchange(&vcpu->active, 1))
		return SHIM_BUSY;
	atomic_store(&vcpu->owner, shim_kick_thread());
	error = shim_take_place(vcpu);
	if (unlikely(error)) {
		end(vcpu);
		vcpu->report.value = -error;
		return SHIM_PLACE_ERROR;
	}
	error = enter_run(vcpu);
	if (error) {
		end(vcpu);
		return refused(vcpu, error);
	}
	vcpu->counters->thread = shim_kick_thread();
	vcpu->counters->runs++;
	vcpu->counters->running = SHIM_RUNNING;
	account_caller(vcpu);
	shim_kick_forward();
	shim_kick_recall(vcpu);
	atomic_store(&vcpu->signalled, 0);
	vcpu->exits_left = vcpu->exits_given = max_exits;
	vcpu->deadline = deadline_of(vcpu, timeout_ns);
	error = vcpu->deadline ? shim_kick_arm(vcpu) : 0;
	if (!timeout_ns)
		vcpu->run->immediate_exit = 1; /* the guest is not to begin before the signal comes */
	if (unlikely(atomic_load(&vcpu->pauses)) && !error)
		return leave(vcpu, SHIM_PAUSED);
	return leave(vcpu, error ? refused(vcpu, error) : loop(vcpu));
}

/* The Python handler's answer goes where KVM looks for it. */
static void settle_element(struct shim_vcpu *vcpu)
{
	struct access access;

	if (vcpu->pending != SHIM_PENDING_REPLY || !shim_access_describe(vcpu, &access))
		return;
	memcpy(access.data + vcpu->element * access.size, &vcpu->report.value, access.size);
	vcpu->pending = SHIM_PENDING_COMPLETE;
}

/* The run has the vCPU again. */
static int resume(struct shim_vcpu *vcpu)
{
	int stop = SHIM_CONTINUE;

	account_caller(vcpu);
	if (vcpu->stop == SHIM_ACCESS)
		settle_element(vcpu);
	else if (vcpu->stop == SHIM_MSR)
		shim_reply(vcpu, vcpu->report.value); /* unless the handler has refused */
	if (vcpu->stop != SHIM_RING && !is_interruption(vcpu->stop))
		vcpu->element++; /* that one is done; a full ring has not taken it yet */
	if (!is_interruption(vcpu->stop) && vcpu->element < vcpu->elements)
		stop = shim_dispatch(vcpu, vcpu->element);
	overdue(vcpu);
	shim_kick_recall(vcpu);
	return leave(vcpu, stop == SHIM_CONTINUE ? loop(vcpu) : stop);
}

/* After SHIM_ACCESS or SHIM_MSR of a read, report.value is its answer. */
int shim_resume(struct shim_vcpu *vcpu)
{
	int stop = SHIM_CONTINUE, error;

	if (unlikely(vcpu->stop == SHIM_PAUSED)) {
		stop = shim_park(vcpu);
		if (stop == SHIM_PAUSED)
			return stop;
	}
	error = enter_run(vcpu);
	if (error) {
		shim_coalesced_end(vcpu);
		end(vcpu);
		return refused(vcpu, error);
	}
	if (unlikely(vcpu->stop == SHIM_PAUSED)) {
		atomic_store(&vcpu->parked, 0); /* whoever asks from here on waits */
		vcpu->counters->running = SHIM_RUNNING;
		vcpu->returned_at = vcpu->left_at = 0; /* the pause is nobody's time */
		if (stop == SHIM_CONTINUE && atomic_load(&vcpu->pauses))
			stop = SHIM_PAUSED;
		if (stop != SHIM_CONTINUE)
			return leave(vcpu, stop);
	}
	return resume(vcpu);
}

/* Ends a run that a handler's exception leaves; what it did not answer reads as all ones. */
void shim_finish(struct shim_vcpu *vcpu)
{
	if (!atomic_load(&vcpu->active) || atomic_load(&vcpu->owner) != shim_kick_thread())
		return; /* not our run: it was over already, or refused */
	if (vcpu->pending == SHIM_PENDING_REPLY)
		vcpu->pending = SHIM_PENDING_COMPLETE;
	vcpu->elements = 0;
	wind_up(vcpu);
}

/* ------------------------------------------------------------------ between runs */

/*
 * Have KVM finish the instruction of the last exit, so that registers are architectural: enter
 * with immediate_exit, which completes and comes straight back with EINTR. A further exit of the
 * same instruction (the second half of an MMIO access, say) is kept for the next run.
 */
static int complete(struct shim_vcpu *vcpu)
{
	int result;

	if (vcpu->pending != SHIM_PENDING_COMPLETE || vcpu->deferred ||
	    vcpu->element + 1 < vcpu->elements)
		return 0;
	vcpu->run->immediate_exit = 1;
	result = kvm_run(vcpu);
	lower_flag(vcpu);
	shim_take_registers(vcpu);
	if (result == -EINTR)
		vcpu->pending = SHIM_PENDING_NONE;
	else if (result == 0)
		vcpu->deferred = true;
	return result == -EINTR ? 0 : result;
}

/* Of another thread's run that is not paused, also while it is in a handler. */
static bool is_anothers(const struct shim_vcpu *vcpu)
{
	return atomic_load(&vcpu->active) && atomic_load(&vcpu->owner) != shim_kick_thread() &&
	       !atomic_load(&vcpu->parked);
}

/*
 * With the vCPU taken: 0; -EBADF: it is closed; -EBUSY: a run has it. A run that is being paused is
 * waited for: between two pauses it may have begun to go on, and comes back at once. Who holds it
 * in a handler is not waited for beyond MOST_WAIT_NS.
 */
#define MOST_WAIT_NS 100000000

static int take(struct shim_vcpu *vcpu)
{
	int64_t until = 0;

	for (;;) {
		int error = is_anothers(vcpu) ? -EBUSY : enter(vcpu);

		if (error != -EBUSY || !atomic_load(&vcpu->pauses))
			return error;
		if (!until)
			until = shim_now() + MOST_WAIT_NS;
		if (!shim_await_pause(vcpu, until) || shim_now() >= until)
			return -EBUSY;
	}
}

static int exclusively(struct shim_vcpu *vcpu, int (*action)(struct shim_vcpu *, uint64_t),
		       uint64_t fields)
{
	int result;

	pthread_mutex_lock(&vcpu->brief); /* others are through in a moment */
	result = take(vcpu);
	if (!result) {
		result = action(vcpu, fields);
		shim_kick_leave(vcpu);
	}
	pthread_mutex_unlock(&vcpu->brief);
	return result;
}

static int sync_fields(struct shim_vcpu *vcpu, uint64_t fields)
{
	int error;

	vcpu->accessed |= fields;
	error = complete(vcpu);
	vcpu->accessed |= fields; /* completion is no exit: the next one is to show them too */
	return error ? error : shim_fetch(vcpu, fields);
}

/* Make `fields` of *regs show the vCPU as it is now. -EBUSY while another thread runs it. */
int shim_sync(struct shim_vcpu *vcpu, uint64_t fields)
{
	return exclusively(vcpu, sync_fields, fields);
}

/* KVM lets its emulator run this many elements of a string before it looks at immediate_exit. */
#define MOST_ELEMENTS 1024

/* The vCPU is about to go on elsewhere: its unfinished instruction ends here. Reads without an
 * answer give all ones, further writes are dropped. */
static int finish_instruction(struct shim_vcpu *vcpu)
{
	struct access access;
	int error = 0;

	for (unsigned i = 0; i < 2 * MOST_ELEMENTS && !error; i++) {
		if (vcpu->deferred && shim_access_describe(vcpu, &access) && !access.is_write)
			memset(access.data, 0xff, access.size * access.count);
		if (!vcpu->deferred && vcpu->pending == SHIM_PENDING_NONE)
			break;
		vcpu->deferred = false;
		vcpu->elements = 0;
		vcpu->pending = SHIM_PENDING_COMPLETE;
		error = complete(vcpu);
	}
	return error;
}

static int settle_fields(struct shim_vcpu *vcpu, uint64_t fields)
{
	int error = fields ? finish_instruction(vcpu) : complete(vcpu);

	if (!error)
		error = shim_write_back(vcpu);
	vcpu->fields &= ~fields;
	return error;
}

/*
 * Before an ioctl reads or sets the state itself: completion first, then the page's edits; and the
 * page no longer counts as current for `fields`, which the ioctl is about to change. A read that
 * still waits for its answer goes on waiting if there are none.
 */
int shim_settle(struct shim_vcpu *vcpu, uint64_t fields)
{
	return exclusively(vcpu, settle_fields, fields);
}

static int complete_now(struct shim_vcpu *vcpu, uint64_t unused)
{
	int error;

	(void)unused;
	if (vcpu->pending == SHIM_PENDING_REPLY)
		vcpu->pending = SHIM_PENDING_COMPLETE;
	error = complete(vcpu);
	return error ? error : vcpu->deferred;
}

/* Finish the last exit's instruction, with what its read has for an answer by now, and not a bit
 * more. 1: that gave a further exit, which the next run begins with; 0: it is finished. */
int shim_complete(struct shim_vcpu *vcpu)
{
	return exclusively(vcpu, complete_now, 0);
}

/* The answer to a read that came back as SHIM_EXIT: all of its size * count bytes. */
int shim_answer(struct shim_vcpu *vcpu, const uint8_t *data, size_t length)
{
	struct access access;

	if (vcpu->pending != SHIM_PENDING_REPLY || !shim_access_describe(vcpu, &access) || access.is_write)
		return -EINVAL;
	if (length != (size_t)access.size * access.count)
		return -EMSGSIZE;
	memcpy(access.data, data, length);
	vcpu->pending = SHIM_PENDING_COMPLETE;
	return 0;
}
