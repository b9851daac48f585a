/*
 * A virtio device's thread, and its life.
 *
 * One thread per device, not one per VM: preadv() and fdatasync() on a file block, for as long as
 * the storage takes, and a disk must not hold up the network. A device at rest costs a sleeping
 * thread, some 20 KiB; under load each has a pCPU to itself where there is one.
 */
#define _GNU_SOURCE /* pthread_setname_np */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "virtio.h"

/* What an epoll event is about: a queue's number, the control eventfd, or a back end's fd. */
#define FROM_CONTROL ((uint64_t)1 << 32)
#define FROM_BACKEND ((uint64_t)2 << 32)
#define EVENTS 16

/* ------------------------------------------------------------------ turns */

/* A mutex is not fair: a worker with much to do would take it again at once. So others announce
 * themselves, and the worker waits until they had their turn. */
void virtio_lock_work(struct virtio_device *device)
{
	atomic_fetch_add(&device->waiting, 1);
	pthread_mutex_lock(&device->work);
	atomic_fetch_sub(&device->waiting, 1);
}

void virtio_unlock_work(struct virtio_device *device)
{
	pthread_cond_signal(&device->turn);
	pthread_mutex_unlock(&device->work);
}

bool virtio_wanted(const struct virtio_device *device)
{
	return atomic_load_explicit(&device->waiting, memory_order_relaxed) ||
	       atomic_load_explicit(&device->stopping, memory_order_relaxed);
}

static void worker_lock(struct virtio_device *device)
{
	pthread_mutex_lock(&device->work);
	while (atomic_load(&device->waiting))
		pthread_cond_wait(&device->turn, &device->work);
}

/* ------------------------------------------------------------------ eventfds */

void virtio_signal(int eventfd)
{
	uint64_t one = 1;
	ssize_t n = write(eventfd, &one, sizeof(one));

	(void)n; /* EAGAIN: 2^64 - 2 signals were not looked at, and one more says nothing new */
}

static bool take_signal(int eventfd)
{
	uint64_t count;

	return read(eventfd, &count, sizeof(count)) == sizeof(count);
}

void virtqueue_kick(struct virtqueue *queue)
{
	if (queue->kick_fd >= 0)
		virtio_signal(queue->kick_fd);
}

/* ------------------------------------------------------------------ the thread */

static void serve_queue(struct virtio_device *device, struct virtqueue *queue)
{
	if (!take_signal(queue->kick_fd))
		return;
	virtio_count(&device->statistics.notifications, 1);
	if (device->live && queue->ready)
		device->ops->notify(device, queue);
}

static void serve(struct virtio_device *device, const struct epoll_event *event)
{
	uint64_t from = event->data.u64;

	if (from == FROM_CONTROL)
		return; /* to stop: the loop looks */
	worker_lock(device);
	if (atomic_load(&device->stopping))
		; /* whatever it was, it comes too late */
	else if (from & FROM_BACKEND)
		device->ops->event(device, (int)(uint32_t)from, event->events);
	else
		serve_queue(device, &device->queue[from]);
	pthread_mutex_unlock(&device->work);
}

static void *work(void *argument)
{
	struct virtio_device *device = argument;
	struct epoll_event events[EVENTS];

	while (!atomic_load(&device->stopping)) {
		int n = epoll_wait(device->epoll_fd, events, EVENTS, -1);

		for (int i = 0; i < n; i++)
			serve(device, &events[i]);
	}
	return NULL;
}

static int watch(struct virtio_device *device, int fd, uint32_t events, uint64_t from)
{
	struct epoll_event event = { .events = events, .data.u64 = from };

	if (!events)
		return epoll_ctl(device->epoll_fd, EPOLL_CTL_DEL, fd, NULL) && errno != ENOENT
			       ? -errno : 0;
	if (!epoll_ctl(device->epoll_fd, EPOLL_CTL_MOD, fd, &event) ||
	    (errno == ENOENT && !epoll_ctl(device->epoll_fd, EPOLL_CTL_ADD, fd, &event)))
		return 0;
	return -errno;
}

int virtio_watch(struct virtio_device *device, int fd, uint32_t events)
{
	return watch(device, fd, events, FROM_BACKEND | (uint32_t)fd);
}

/* ------------------------------------------------------------------ start and stop */

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int new_eventfd(int *fd)
{
	*fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return *fd < 0 ? -errno : 0;
}

static void close_fds(struct virtio_device *device)
{
	for (unsigned i = 0; i < device->queues; i++)
		close_fd(&device->queue[i].kick_fd);
	close_fd(&device->interrupt_fd);
	close_fd(&device->control_fd);
	close_fd(&device->epoll_fd);
}

static int open_fds(struct virtio_device *device)
{
	int error;

	device->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (device->epoll_fd < 0)
		return -errno;
	error = new_eventfd(&device->interrupt_fd);
	if (!error)
		error = new_eventfd(&device->control_fd);
	if (!error)
		error = watch(device, device->control_fd, EPOLLIN, FROM_CONTROL);
	for (unsigned i = 0; i < device->queues && !error; i++) {
		error = new_eventfd(&device->queue[i].kick_fd);
		if (!error)
			error = watch(device, device->queue[i].kick_fd, EPOLLIN, i);
	}
	return error;
}

static int new_memory(struct virtio_device *device, const struct virtio_region *regions,
		      unsigned count)
{
	struct virtio_memory *memory = malloc(sizeof(*memory) + count * sizeof(*regions));

	if (!memory)
		return -ENOMEM;
	memory->count = count;
	memcpy(memory->regions, regions, count * sizeof(*regions));
	free(device->memory);
	device->memory = memory;
	return 0;
}

/* All signals stay with the threads that want them; the new one inherits the mask. */
static int start_thread(struct virtio_device *device)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&device->thread, NULL, work, device);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!error)
		pthread_setname_np(device->thread, device->ops->name);
	return -error;
}

/* A device without its worker is a device after reset. */
static void tear_down(struct virtio_device *device)
{
	virtio_lock_work(device);
	pthread_mutex_lock(&device->registers);
	virtio_reset(device);
	close_fds(device);
	free(device->memory);
	device->memory = NULL;
	pthread_mutex_unlock(&device->registers);
	virtio_unlock_work(device);
}

static int set_up(struct virtio_device *device, const struct virtio_region *regions,
		  unsigned count)
{
	int error;

	virtio_lock_work(device);
	pthread_mutex_lock(&device->registers);
	atomic_store(&device->stopping, false);
	error = new_memory(device, regions, count);
	if (!error)
		error = open_fds(device);
	pthread_mutex_unlock(&device->registers);
	if (!error && device->ops->begin)
		error = device->ops->begin(device);
	virtio_unlock_work(device);
	return error;
}

int shim_virtio_start(struct virtio_device *device, const struct virtio_region *regions,
		      unsigned count)
{
	int error = -EBUSY;

	pthread_mutex_lock(&device->life);
	if (device->closed)
		error = -EBADF;
	else if (!device->running) {
		error = set_up(device, regions, count);
		if (!error)
			error = start_thread(device);
		device->running = !error;
		if (error)
			tear_down(device);
	}
	pthread_mutex_unlock(&device->life);
	return error;
}

/* Regions are added, or change what they permit; none goes or moves while the device runs. */
int shim_virtio_set_memory(struct virtio_device *device, const struct virtio_region *regions,
			   unsigned count)
{
	int error;

	virtio_lock_work(device);
	error = new_memory(device, regions, count);
	for (unsigned i = 0; i < device->queues && !error; i++)
		virtqueue_remap(&device->queue[i]);
	if (!error && device->ops->remapped)
		device->ops->remapped(device);
	virtio_unlock_work(device);
	return error;
}

static void stop_locked(struct virtio_device *device)
{
	if (!device->running)
		return;
	atomic_store(&device->stopping, true);
	virtio_signal(device->control_fd);
	pthread_join(device->thread, NULL);
	tear_down(device);
	device->running = false;
}

void shim_virtio_stop(struct virtio_device *device)
{
	pthread_mutex_lock(&device->life);
	stop_locked(device);
	pthread_mutex_unlock(&device->life);
}

void shim_virtio_close(struct virtio_device *device)
{
	pthread_mutex_lock(&device->life);
	stop_locked(device);
	if (!device->closed && device->ops->close)
		device->ops->close(device);
	device->closed = true;
	pthread_mutex_unlock(&device->life);
}

static void init_locks(struct virtio_device *device)
{
	pthread_mutex_init(&device->work, NULL);
	pthread_mutex_init(&device->registers, NULL);
	pthread_mutex_init(&device->life, NULL);
	pthread_cond_init(&device->turn, NULL);
}

/* Closed, as far as the child is concerned, with nothing of the parent's touched: the eventfds and
 * the worker are the parent's. What the worker had under its hands is left as it lies. */
static void in_child(struct shim_at_fork *at_fork)
{
	struct virtio_device *device = SHIM_OF_FORK(struct virtio_device, at_fork);

	init_locks(device);
	device->waiting = 0;
	device->running = device->live = false;
	device->memory = NULL;
	for (unsigned i = 0; i < device->queues; i++)
		device->queue[i].ready = false;
	close_fds(device);
	if (!device->closed && device->ops->close)
		device->ops->close(device);
	device->closed = true;
}

void virtio_init(struct virtio_device *device, const struct virtio_ops *ops, uint32_t id,
		 unsigned queues, uint16_t queue_size)
{
	device->device.access = virtio_mmio_access;
	device->ops = ops;
	device->id = id;
	device->features = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX |
			   1ull << VIRTIO_RING_F_INDIRECT_DESC;
	device->queues = queues;
	for (unsigned i = 0; i < queues; i++)
		device->queue[i] = (struct virtqueue){
			.device = device, .index = i, .size_max = queue_size, .kick_fd = -1,
		};
	device->epoll_fd = device->control_fd = device->interrupt_fd = -1;
	init_locks(device);
	shim_at_fork(&device->at_fork, in_child);
}

void shim_virtio_free(struct virtio_device *device)
{
	if (!device)
		return;
	shim_virtio_close(device);
	shim_not_at_fork(&device->at_fork);
	pthread_cond_destroy(&device->turn);
	pthread_mutex_destroy(&device->life);
	pthread_mutex_destroy(&device->registers);
	pthread_mutex_destroy(&device->work);
	free(device);
}

/* ------------------------------------------------------------------ what the host asks */

/* Why the driver was told to reset the device, last time; NULL: never. */
const char *shim_virtio_fault(struct virtio_device *device, unsigned *queue)
{
	const char *fault;

	pthread_mutex_lock(&device->registers);
	fault = device->fault;
	*queue = device->fault_queue;
	pthread_mutex_unlock(&device->registers);
	return fault;
}

/* -1 without a worker. */
int shim_virtio_queue_fd(const struct virtio_device *device, unsigned queue)
{
	return queue < device->queues ? device->queue[queue].kick_fd : -1;
}

int shim_virtio_interrupt_fd(const struct virtio_device *device)
{
	return device->interrupt_fd;
}

unsigned shim_virtio_queues(const struct virtio_device *device)
{
	return device->queues;
}

void shim_virtio_statistics(const struct virtio_device *device, uint64_t *words)
{
	const struct virtio_statistics *statistics = &device->statistics;

	words[0] = atomic_load(&statistics->requests);
	words[1] = atomic_load(&statistics->errors);
	words[2] = atomic_load(&statistics->bytes_in);
	words[3] = atomic_load(&statistics->bytes_out);
	words[4] = atomic_load(&statistics->notifications);
	words[5] = atomic_load(&statistics->interrupts);
	words[6] = atomic_load(&statistics->accesses);
}
