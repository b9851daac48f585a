/*
 * Where a device's output bytes go: a file descriptor, or memory that the host takes from.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

/* What waits to be written is the parent's to write. */
static void in_child(struct shim_at_fork *at_fork)
{
	struct shim_sink *sink = SHIM_OF_FORK(struct shim_sink, at_fork);

	pthread_mutex_init(&sink->lock, NULL);
	if (sink->fd >= 0)
		sink->length = 0;
	sink->fd = -1;
}

struct shim_sink *shim_sink_new(int fd)
{
	struct shim_sink *sink = calloc(1, sizeof(*sink));

	if (!sink)
		return NULL;
	sink->fd = fd;
	pthread_mutex_init(&sink->lock, NULL);
	shim_at_fork(&sink->at_fork, in_child);
	return sink;
}

void shim_sink_free(struct shim_sink *sink)
{
	if (!sink)
		return;
	shim_not_at_fork(&sink->at_fork);
	pthread_mutex_destroy(&sink->lock);
	free(sink);
}

#define STALL_MS 50
#define WRITE_SIZE 4096 /* PIPE_BUF: a pipe that polls as writable takes it without blocking */

/*
 * Write what there is. A reader that does not keep up (a full pipe, a stopped terminal) gives
 * -EAGAIN after wait_ms, and the bytes stay; waiting longer than STALL_MS could sleep through a
 * kick that came just before. Any other error is remembered, and the bytes are dropped, these and
 * all that come before the next redirect: a reader that went away must not stop the guest again and
 * again.
 */
static int flush_locked(struct shim_sink *sink, int wait_ms)
{
	unsigned done = 0;
	int error = 0;

	if (sink->fd < 0)
		return 0;
	while (done < sink->length && !error) {
		struct pollfd ready = { .fd = sink->fd, .events = POLLOUT };
		int n = poll(&ready, 1, wait_ms);

		unsigned length = sink->length - done;

		if (n > 0)
			n = write(sink->fd, sink->bytes + done,
				  length < WRITE_SIZE ? length : WRITE_SIZE);
		else if (n == 0)
			error = -EAGAIN;
		if (n > 0)
			done += n;
		else if (n < 0)
			error = errno == EINTR ? -EAGAIN : -errno;
	}
	if (error && error != -EAGAIN) {
		sink->error = error;
		sink->length = 0;
		return error;
	}
	memmove(sink->bytes, sink->bytes + done, sink->length - done);
	sink->length -= done;
	return error;
}

int shim_sink_flush(struct shim_sink *sink)
{
	int error;

	pthread_mutex_lock(&sink->lock);
	error = flush_locked(sink, STALL_MS);
	pthread_mutex_unlock(&sink->lock);
	return error;
}

void shim_sink_redirect(struct shim_sink *sink, int fd)
{
	pthread_mutex_lock(&sink->lock);
	flush_locked(sink, STALL_MS);
	sink->fd = fd;
	sink->error = 0;
	pthread_mutex_unlock(&sink->lock);
}

static int put_locked(struct shim_sink *sink, struct shim_vcpu *vcpu, uint8_t byte)
{
	bool full;
	int error = 0;

	if (!sink->total++)
		sink->first_at = shim_now();
	if (sink->error)
		return SHIM_CONTINUE; /* said once: its reader is gone */
	if (sink->length < SHIM_SINK_SIZE)
		sink->bytes[sink->length++] = byte;
	full = sink->length > SHIM_SINK_FULL;
	if (sink->fd < 0)
		return full ? SHIM_DRAIN : SHIM_CONTINUE;
	if (byte == '\n' || full)
		error = flush_locked(sink, full ? STALL_MS : 0);
	if (error == -EAGAIN && full)
		vcpu->stalled = sink;
	if (error && error != -EAGAIN) {
		vcpu->report.value = -error;
		return SHIM_SINK_ERROR;
	}
	if (sink->length && !vcpu->flush_at) {
		/* A prompt has no newline, and its guest may never exit again: come back for it. */
		vcpu->flush_at = shim_now() + SHIM_FLUSH_NS;
		shim_kick_arm(vcpu);
	}
	return SHIM_CONTINUE;
}

/* Returns SHIM_CONTINUE or the stop that the run ends or pauses with. */
int shim_sink_put(struct shim_sink *sink, struct shim_vcpu *vcpu, uint8_t byte)
{
	int result;

	pthread_mutex_lock(&sink->lock);
	result = put_locked(sink, vcpu, byte);
	pthread_mutex_unlock(&sink->lock);
	return result;
}

/*
 * A full line holds the guest back, as hardware flow control does: not before there is room, or
 * somebody wants it out, does it go on. In the second case it must not print more, so it is not
 * entered: KVM_RUN gives EINTR. Returns SHIM_CONTINUE or SHIM_SINK_ERROR.
 */
int shim_sink_wait(struct shim_vcpu *vcpu)
{
	struct shim_sink *sink = vcpu->stalled;
	int error = -EAGAIN;

	while (error == -EAGAIN && !shim_wanted_out(vcpu)) {
		pthread_mutex_lock(&sink->lock);
		error = sink->length > SHIM_SINK_FULL ? flush_locked(sink, STALL_MS) : 0;
		pthread_mutex_unlock(&sink->lock);
	}
	if (error == -EAGAIN) {
		__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		return SHIM_CONTINUE;
	}
	vcpu->stalled = NULL;
	if (!error)
		return SHIM_CONTINUE;
	vcpu->report.value = -error;
	return SHIM_SINK_ERROR;
}

unsigned shim_sink_take(struct shim_sink *sink, uint8_t *out, unsigned size)
{
	unsigned n;

	pthread_mutex_lock(&sink->lock);
	n = sink->length < size ? sink->length : size;
	memcpy(out, sink->bytes, n);
	memmove(sink->bytes, sink->bytes + n, sink->length - n);
	sink->length -= n;
	pthread_mutex_unlock(&sink->lock);
	return n;
}
