/*
 * Console device (VIRTIO 1.2, "5.3 Console Device"), one port: hvc0 to Linux.
 *
 * Output goes by writev() straight from guest memory to a descriptor. A reader that does not keep
 * up makes the driver's buffers wait in the queue: nothing is lost, and the worker sleeps until
 * there is room. Input waits in a ring here until the driver has buffers for it.
 */
#define _GNU_SOURCE /* fallocate */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/virtio_console.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "virtio.h"

#define QUEUE_SIZE 256
#define RX 0
#define TX 1
#define INPUT_SIZE 65536 /* a power of two */
/* Of output: in one go, and that often before input has its turn. */
#define WRITE_MOST (1 << 20)
#define PASS_WRITES 64

struct console {
	struct virtio_device virtio;
	struct virtqueue *rx, *tx;

	int fd;
	bool is_socket, may_block;
	uint64_t keep; /* fd is a memory file, and that much of its end is wanted; 0: all */
	uint64_t position, forgotten; /* bytes */
	int error;     /* of the last write: its reader is gone, output goes nowhere */
	bool full;     /* fd, which is watched then */
	bool watched;
	bool writing; /* this chain, as far as it is not written */
	struct virtio_chain chain;
	struct iovec tx_iov[VIRTIO_SEGMENTS];
	uint64_t passes; /* that left nothing in the queue */
	pthread_cond_t passed; /* never destroyed: the last reset can come after close() */

	unsigned first, length; /* of the input */
	int space_eventfd; /* to be signalled when half of a full ring is free, -1: nobody waits */
	uint8_t input[INPUT_SIZE];
	struct iovec rx_iov[VIRTIO_SEGMENTS];
};

/* ------------------------------------------------------------------ output */

static void watch(struct console *console, bool wanted)
{
	if (wanted != console->watched &&
	    !virtio_watch(&console->virtio, console->fd, wanted ? EPOLLOUT : 0))
		console->watched = wanted;
}

/* Somebody else's pipe or terminal may be in blocking mode, and must stay so. One that polls as
 * writable takes PIPE_BUF bytes. */
static ssize_t write_little(int fd, const struct iovec *piece)
{
	struct pollfd ready = { .fd = fd, .events = POLLOUT };

	if (poll(&ready, 1, 0) == 0) {
		errno = EAGAIN;
		return -1;
	}
	return write(fd, piece->iov_base, piece->iov_len < PIPE_BUF ? piece->iov_len : PIPE_BUF);
}

static ssize_t write_some(const struct console *console)
{
	struct iovec *iov = console->chain.iov;
	unsigned pieces = 0;
	size_t size = 0;

	while (pieces < console->chain.readable && size + iov[pieces].iov_len <= WRITE_MOST)
		size += iov[pieces++].iov_len;
	if (console->is_socket) {
		struct msghdr message = { .msg_iov = iov, .msg_iovlen = pieces ? pieces : 1 };

		return sendmsg(console->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	if (console->may_block)
		return write_little(console->fd, iov);
	return pieces ? writev(console->fd, iov, pieces)
		      : write(console->fd, iov->iov_base, WRITE_MOST);
}

/* Of a memory file: the guest must not fill the host's memory. */
static void forget(struct console *console)
{
	uint64_t keep = console->keep;

	if (!keep || console->position - console->forgotten < 2 * keep)
		return;
	if (!fallocate(console->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, console->forgotten,
		       keep))
		console->forgotten += keep;
}

static void written(struct console *console, size_t size)
{
	struct virtio_chain *chain = &console->chain;

	virtio_count(&console->virtio.statistics.bytes_out, size);
	console->position += size;
	chain->readable_bytes -= size;
	for (; chain->readable && size >= chain->iov->iov_len; chain->iov++, chain->readable--)
		size -= chain->iov->iov_len;
	if (chain->readable) {
		chain->iov->iov_base = (uint8_t *)chain->iov->iov_base + size;
		chain->iov->iov_len -= size;
	}
	forget(console);
}

static bool take_chain(struct console *console)
{
	if (!console->writing)
		console->writing = virtqueue_pop(console->tx, &console->chain, console->tx_iov,
						 VIRTIO_SEGMENTS) > 0;
	return console->writing;
}

/* Some of the chain, or with no reader left all of it. False: there is no room for it now. */
static bool write_chain(struct console *console)
{
	struct virtio_chain *chain = &console->chain;

	if (chain->readable_bytes && !console->error) {
		ssize_t size = write_some(console);

		console->full = !size || (size < 0 && errno == EAGAIN);
		if (console->full)
			return false;
		if (size > 0)
			written(console, size);
		else if (errno != EINTR)
			console->error = errno;
	}
	if (chain->readable_bytes && !console->error)
		return true;
	if (console->error)
		virtio_count(&console->virtio.statistics.errors, 1);
	console->writing = false;
	virtqueue_push(console->tx, chain, 0);
	return true;
}

static void transmit(struct console *console)
{
	struct virtio_device *device = &console->virtio;
	unsigned writes = 0;

	console->full = false;
	do {
		virtqueue_quiet(console->tx);
		while (writes < PASS_WRITES && !virtio_wanted(device) && take_chain(console) &&
		       write_chain(console))
			writes++;
		virtqueue_publish(console->tx);
	} while (!console->writing && writes < PASS_WRITES && virtqueue_listen(console->tx));
	watch(console, console->full);
	if (!console->full && (console->writing || writes == PASS_WRITES))
		virtqueue_kick(console->tx); /* come back */
	if (!console->writing && virtqueue_empty(console->tx))
		console->passes++;
	pthread_cond_broadcast(&console->passed);
}

/* ------------------------------------------------------------------ input */

static unsigned put(struct console *console, const uint8_t *data, unsigned length)
{
	unsigned end = (console->first + console->length) % INPUT_SIZE;
	unsigned room = INPUT_SIZE - console->length, size = length < room ? length : room;
	unsigned front = size < INPUT_SIZE - end ? size : INPUT_SIZE - end;

	memcpy(console->input + end, data, front);
	memcpy(console->input, data + front, size - front);
	console->length += size;
	return size;
}

static unsigned take(struct console *console, uint8_t *data, size_t length)
{
	unsigned size = length < console->length ? length : console->length;
	unsigned left = INPUT_SIZE - console->first, front = size < left ? size : left;

	memcpy(data, console->input + console->first, front);
	memcpy(data + front, console->input, size - front);
	console->first = (console->first + size) % INPUT_SIZE;
	console->length -= size;
	return size;
}

static uint32_t fill(struct console *console, const struct virtio_chain *chain)
{
	const struct iovec *piece = chain->iov + chain->readable, *end = piece + chain->writable;
	uint32_t size = 0;

	for (; piece < end && console->length; piece++)
		size += take(console, piece->iov_base, piece->iov_len);
	return size;
}

static void tell_of_space(struct console *console)
{
	if (console->space_eventfd >= 0 && console->length <= INPUT_SIZE / 2) {
		virtio_signal(console->space_eventfd);
		console->space_eventfd = -1;
	}
}

static void deliver(struct console *console)
{
	struct virtio_chain chain;

	do {
		virtqueue_quiet(console->rx);
		while (console->length && !virtio_wanted(&console->virtio) &&
		       virtqueue_pop(console->rx, &chain, console->rx_iov, VIRTIO_SEGMENTS) > 0) {
			uint32_t size = fill(console, &chain);

			virtqueue_push(console->rx, &chain, size);
			virtio_count(&console->virtio.statistics.bytes_in, size);
		}
		virtqueue_publish(console->rx);
	} while (console->length && virtqueue_listen(console->rx));
	tell_of_space(console);
}

/* How many bytes were taken. Fewer than `length`: the ring is full, and space_eventfd (unless -1)
 * is signalled once when half of it is free. It replaces the one of an earlier call. */
unsigned shim_virtio_console_receive(struct virtio_device *device, const uint8_t *data,
				     unsigned length, int space_eventfd)
{
	struct console *console = (struct console *)device;
	unsigned taken = 0, size;

	virtio_lock_work(device);
	console->space_eventfd = -1;
	do {
		size = put(console, data + taken, length - taken);
		taken += size;
		deliver(console);
	} while (size && taken < length);
	console->space_eventfd = taken < length ? space_eventfd : -1;
	tell_of_space(console);
	virtio_unlock_work(device);
	return taken;
}

unsigned shim_virtio_console_backlog(struct virtio_device *device)
{
	unsigned length;

	virtio_lock_work(device);
	length = ((struct console *)device)->length;
	virtio_unlock_work(device);
	return length;
}

/* ------------------------------------------------------------------ the descriptor */

static void set_fd(struct console *console, int fd, uint64_t keep)
{
	struct stat status = { 0 };

	console->fd = fd;
	console->keep = keep;
	console->position = keep ? lseek(fd, 0, SEEK_END) : 0;
	console->forgotten = 0;
	console->error = 0;
	console->is_socket = !fstat(fd, &status) && S_ISSOCK(status.st_mode);
	console->may_block = !S_ISREG(status.st_mode) && !(fcntl(fd, F_GETFL) & O_NONBLOCK);
}

/* Output from now on. fd becomes the device's, the one before is closed. */
void shim_virtio_console_redirect(struct virtio_device *device, int fd, uint64_t keep)
{
	struct console *console = (struct console *)device;

	virtio_lock_work(device);
	watch(console, false);
	close(console->fd);
	set_fd(console, fd, keep);
	virtqueue_kick(console->tx);
	virtio_unlock_work(device);
}

/* Wait until all that the driver has sent so far is written. 0; -ETIMEDOUT; the error with which
 * output has ended, since the last redirect. */
int shim_virtio_console_flush(struct virtio_device *device, int64_t timeout_ns)
{
	struct console *console = (struct console *)device;
	int64_t deadline = shim_now() + timeout_ns;
	struct timespec end = { deadline / 1000000000, deadline % 1000000000 };
	uint64_t passes;
	int error = 0;

	virtio_lock_work(device);
	passes = console->passes;
	virtqueue_kick(console->tx);
	/* Waiting gives the lock to the worker, who waits for its turn. */
	pthread_cond_signal(&device->turn);
	while (device->live && console->passes == passes && !error)
		error = pthread_cond_timedwait(&console->passed, &device->work, &end);
	if (!error)
		error = console->error;
	virtio_unlock_work(device);
	return -error;
}

/* ------------------------------------------------------------------ life */

static void notify(struct virtio_device *device, struct virtqueue *queue)
{
	struct console *console = (struct console *)device;

	if (queue == console->rx)
		deliver(console);
	else
		transmit(console);
}

static void event(struct virtio_device *device, int fd, uint32_t events)
{
	struct console *console = (struct console *)device;

	(void)events;
	if (fd != console->fd)
		return; /* redirected meanwhile */
	if (device->live)
		transmit(console);
	else
		watch(console, false);
}

static int begin(struct virtio_device *device)
{
	((struct console *)device)->watched = false;
	return 0;
}

/* Input that the driver has not taken stays, for the next. */
static void forget_output(struct console *console)
{
	console->writing = false;
	pthread_cond_broadcast(&console->passed);
}

static void reset(struct virtio_device *device)
{
	forget_output((struct console *)device);
}

static void stopped(struct virtio_device *device, struct virtqueue *queue)
{
	struct console *console = (struct console *)device;

	if (queue == console->tx)
		forget_output(console);
}

static void close_fd(struct virtio_device *device)
{
	struct console *console = (struct console *)device;

	close(console->fd);
	console->fd = console->space_eventfd = -1;
}

void shim_virtio_console_resize(struct virtio_device *device, uint16_t columns, uint16_t rows)
{
	uint16_t size[2] = { columns, rows };

	virtio_set_config(device, offsetof(struct virtio_console_config, cols), size, sizeof(size));
}

/* fd: where output goes, and becomes the device's, unless there is no memory for one (NULL). keep:
 * it is a memory file, of which the last `keep` bytes at least stay; 0: it is anything. */
struct virtio_device *shim_virtio_console_new(int fd, uint64_t keep, uint16_t columns,
					      uint16_t rows)
{
	static const struct virtio_ops ops = {
		.name = "kvmpy-console", .notify = notify, .event = event, .begin = begin,
		.reset = reset, .stopped = stopped, .close = close_fd,
	};
	struct console *console = calloc(1, sizeof(*console));
	pthread_condattr_t monotonic;

	if (!console)
		return NULL;
	virtio_init(&console->virtio, &ops, VIRTIO_ID_CONSOLE, 2, QUEUE_SIZE);
	console->rx = &console->virtio.queue[RX];
	console->tx = &console->virtio.queue[TX];
	console->space_eventfd = -1;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&console->passed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	set_fd(console, fd, keep);
	console->virtio.features |= 1ull << VIRTIO_CONSOLE_F_SIZE;
	console->virtio.config_size = offsetof(struct virtio_console_config, max_nr_ports);
	shim_virtio_console_resize(&console->virtio, columns, rows);
	return &console->virtio;
}
