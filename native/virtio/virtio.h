/*
 * Virtio 1.x devices behind virtio-mmio (OASIS "Virtual I/O Device (VIRTIO) Version 1.2").
 *
 *   virtqueue.c  split rings: what the driver offers, checked; what the device hands back
 *   mmio.c       the register file, as a shim_device: vCPU exits to it never leave C
 *   worker.c     one thread per device, its eventfds, start and stop
 *   rng.c, blk.c, net.c, console.c  the devices
 *
 * A device is a struct that begins with a struct virtio_device and fills in its operations,
 * features, queues and config space:
 *
 *	struct rng { struct virtio_device virtio; ... };
 *
 *	struct virtio_device *shim_virtio_rng_new(void)
 *	{
 *		static const struct virtio_ops ops = { .name = "kvmpy-rng", .notify = rng_notify };
 *		struct rng *rng = calloc(1, sizeof(*rng));
 *
 *		if (!rng)
 *			return NULL;
 *		virtio_init(&rng->virtio, &ops, VIRTIO_ID_RNG, 1, 64);
 *		return &rng->virtio;
 *	}
 *
 * A queue handler takes chains until there are none, and asks to be told of more:
 *
 *	do {
 *		virtqueue_quiet(queue);
 *		while (!virtio_wanted(device) &&
 *		       virtqueue_pop(queue, &chain, iov, VIRTIO_SEGMENTS) > 0)
 *			virtqueue_push(queue, &chain, serve(&chain));
 *		virtqueue_publish(queue);
 *	} while (virtqueue_listen(queue));
 *
 * What the guest supplies is checked here, once, for all devices: a chain that virtqueue_pop()
 * gives points into guest memory only, in the right direction, within VIRTIO_SEGMENTS pieces. The
 * bytes behind it stay the guest's to change at any time: copy (virtio_chain_read()), then check.
 * A driver that breaks the rules of the ring gets DEVICE_NEEDS_RESET, and its queues stand still
 * until it resets the device.
 *
 * Locks, in this order:
 *   work       the queues and what the device does. Held by the worker while it serves, and by
 *              whoever changes a queue's set-up: reset, QueueReady, new guest memory, stop.
 *   registers  the register file and config space. Held for some instructions only, so that a
 *              guest reading InterruptStatus never waits for a disk.
 */
#ifndef KVMPY_VIRTIO_H
#define KVMPY_VIRTIO_H

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <sys/uio.h>

#include "shim.h"

#define VIRTIO_MMIO_LENGTH 0x200
#define VIRTIO_CONFIG_SIZE (VIRTIO_MMIO_LENGTH - VIRTIO_MMIO_CONFIG)
#define VIRTIO_QUEUES 4        /* of one device, at most */
#define VIRTIO_QUEUE_SIZE 1024 /* of one queue, at most */
/* Pieces of one chain: what one preadv() takes, IOV_MAX. */
#define VIRTIO_SEGMENTS 1024

/* A piece of guest physical memory. */
API struct virtio_region {
	uint64_t gpa, size;
	uint8_t *hva;
	bool read_only; /* for the guest, and so for a device on its behalf */
};

struct virtio_memory {
	unsigned count;
	struct virtio_region regions[];
};

struct virtio_device;

struct virtqueue {
	struct virtio_device *device;
	unsigned index;
	uint16_t size_max;

	/* as the driver set it up (registers) */
	uint32_t size;
	uint64_t desc_gpa, avail_gpa, used_gpa;
	bool ready;

	/* while ready (work) */
	const struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint16_t next_avail; /* the next entry of the available ring to take */
	uint16_t seen_avail; /* avail->idx when last looked at */
	uint16_t next_used;  /* the next entry of the used ring to fill */
	uint16_t told_used;  /* used->idx, as the driver knows it */

	int kick_fd; /* the driver's notification: an eventfd, -1 without a worker */
};

/* What the driver offers at once: `readable` pieces for the device to read, then `writable` ones
 * for it to write, in iov. */
struct virtio_chain {
	uint16_t head;
	unsigned readable, writable;
	uint32_t readable_bytes, writable_bytes;
	struct iovec *iov;
};

/* Everything but `name` and `notify` may be NULL. All run with the work lock held. */
struct virtio_ops {
	const char *name; /* of the worker thread; at most 15 characters */

	/* Worker: the driver has notified this queue, or DRIVER_OK was set, or the handler left
	 * early because of virtio_wanted(). */
	void (*notify)(struct virtio_device *device, struct virtqueue *queue);

	/* Worker: a descriptor given to virtio_watch() is ready; events as of epoll. It may no
	 * longer be watched: one that was removed during the same round can still be reported. */
	void (*event)(struct virtio_device *device, int fd, uint32_t events);

	/* The worker is about to run: watch what belongs to the back end. 0 or -errno. */
	int (*begin)(struct virtio_device *device);

	/* Any thread: forget what the driver set up, chains taken and not returned too. The queues
	 * are gone already. */
	void (*reset)(struct virtio_device *device);

	/* Any thread: the driver takes this queue back (QueueReady = 0, "4.2.2.2 Driver
	 * Requirements: MMIO Device Register Layout"). Chains taken and not returned are its own
	 * again: forget them, and touch them no more. */
	void (*stopped)(struct virtio_device *device, struct virtqueue *queue);

	/* Any thread: there is more memory, or the driver may no longer write to some. Forget where
	 * buffers lie that wait to be filled: they can be popped once more. */
	void (*remapped)(struct virtio_device *device);

	/* The driver wrote to config space; registers lock held too. config[] is unchanged: a device
	 * without this has a read-only config space. offset + size lie within config_size. */
	void (*write_config)(struct virtio_device *device, unsigned offset, const uint8_t *data,
			     unsigned size);

	/* Give the back end back. There is no worker; comes once. In a fork()ed child, too. */
	void (*close)(struct virtio_device *device);
};

/* What it has done. Written by whoever does it, read by anybody. */
struct virtio_statistics {
	_Atomic uint64_t requests;      /* chains returned to the driver */
	_Atomic uint64_t errors;        /* ... that tell it of a failure */
	_Atomic uint64_t bytes_in;      /* written into guest memory */
	_Atomic uint64_t bytes_out;     /* read from guest memory */
	_Atomic uint64_t notifications; /* queue notifications that reached the worker */
	_Atomic uint64_t interrupts;    /* sent */
	_Atomic uint64_t accesses;      /* exits to the register file */
};

API struct virtio_device {
	struct shim_device device; /* first: the bus knows no more of it */
	const struct virtio_ops *ops;
	uint32_t id;
	uint64_t features; /* offered; VERSION_1, EVENT_IDX and INDIRECT_DESC are set by virtio_init */

	pthread_mutex_t work, registers, life;
	pthread_cond_t turn;  /* of the worker, after those that virtio_lock_work() counts */
	_Atomic int waiting;
	_Atomic bool stopping;

	/* registers */
	uint32_t status;
	uint32_t device_features_sel, driver_features_sel, queue_sel;
	uint64_t driver_features; /* accepted, once FEATURES_OK is set */
	uint32_t config_generation;
	_Atomic uint32_t interrupt_status;
	uint8_t config[VIRTIO_CONFIG_SIZE]; /* little endian, as the guest sees it */
	unsigned config_size;
	const char *fault; /* why DEVICE_NEEDS_RESET is set */
	unsigned fault_queue;

	/* work */
	bool live; /* DRIVER_OK, and no fault: queues are served */
	struct virtio_memory *memory;
	unsigned queues;
	struct virtqueue queue[VIRTIO_QUEUES];

	/* worker */
	pthread_t thread;
	bool running, closed; /* life */
	struct shim_at_fork at_fork;
	int epoll_fd, control_fd, interrupt_fd;

	struct virtio_statistics statistics;
};

/* ------------------------------------------------------------------ for devices */

void virtio_init(struct virtio_device *device, const struct virtio_ops *ops, uint32_t id,
		 unsigned queues, uint16_t queue_size);

/* virtqueue.c; all with the work lock held.
 *
 * virtqueue_pop: 1 and a chain, whose pieces are in iov[0 .. capacity); 0: nothing is there;
 * -ENOBUFS: the next chain has more than `capacity` pieces and waits (never with VIRTIO_SEGMENTS);
 * -EPROTO: the device needs a reset, or the queue is not in use.
 * virtqueue_push: the chain is done, `written` bytes of its writable part are filled from the
 * front. The driver sees nothing before virtqueue_publish(), which interrupts it if it wants that.
 * virtqueue_quiet, virtqueue_listen: notifications are of no use now, are wanted again; the latter
 * returns true when chains came in between: nobody will notify of these.
 * virtqueue_empty: there is nothing to pop.
 * virtqueue_kick: have the worker call ops->notify, as if the driver had notified. */
int virtqueue_pop(struct virtqueue *queue, struct virtio_chain *chain, struct iovec *iov,
		  unsigned capacity);
void virtqueue_push(struct virtqueue *queue, const struct virtio_chain *chain, uint32_t written);
void virtqueue_publish(struct virtqueue *queue);
void virtqueue_quiet(struct virtqueue *queue);
bool virtqueue_listen(struct virtqueue *queue);
bool virtqueue_empty(struct virtqueue *queue);
void virtqueue_kick(struct virtqueue *queue);
/* The last `count` chains that were popped, and not pushed, are the next to be popped again. */
void virtqueue_unpop(struct virtqueue *queue, unsigned count);

/* The front of the readable part, copied; those bytes leave the chain. False: it is shorter. */
bool virtio_chain_read(struct virtio_chain *chain, void *data, uint32_t size);
/* The writable part is filled from the front with as much as fits: how much did. */
uint32_t virtio_chain_write(const struct virtio_chain *chain, const void *data, uint32_t size);
/* The last byte of the writable part, which leaves the chain. NULL: there is none. */
uint8_t *virtio_chain_last(struct virtio_chain *chain);

/* True when somebody waits for the work lock: leave the handler soon, publishing what is done.
 * The handler is called again. */
bool virtio_wanted(const struct virtio_device *device);

/* The driver broke the protocol: DEVICE_NEEDS_RESET. `reason` lives for ever. Work lock held. */
void virtio_fail(struct virtio_device *device, const struct virtqueue *queue, const char *reason);

/* Change config space and tell the driver. Any thread, no lock held but work. */
void virtio_set_config(struct virtio_device *device, unsigned offset, const void *data,
		       unsigned size);

/* Have ops->event called when fd is ready for `events` (EPOLLIN, EPOLLOUT); 0: no more. An fd that
 * stays ready is reported again and again: stop watching it while nothing can be done about it (a
 * tap with packets, and no buffer to put them in). From ops->begin and the worker. 0 or -errno. */
int virtio_watch(struct virtio_device *device, int fd, uint32_t events);

/* For threads other than the worker: exclusive use of the device, the worker steps aside. */
void virtio_lock_work(struct virtio_device *device);
void virtio_unlock_work(struct virtio_device *device);

static inline bool virtio_has(const struct virtio_device *device, unsigned feature)
{
	return device->driver_features >> feature & 1;
}

static inline void virtio_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* ------------------------------------------------------------------ between our own files */

bool virtqueue_start(struct virtqueue *queue, const char **problem);
/* Where its rings are now; a device whose rings are no longer usable needs a reset. */
void virtqueue_remap(struct virtqueue *queue);
void virtqueue_stop(struct virtqueue *queue);
void virtqueue_reset(struct virtqueue *queue);
void virtio_signal(int eventfd);
void virtio_reset(struct virtio_device *device);
void virtio_interrupt(struct virtio_device *device, uint32_t cause);
int virtio_mmio_access(struct shim_device *shim, struct shim_vcpu *vcpu, uint64_t offset,
		       uint8_t *data, unsigned size, bool is_write);

/* ------------------------------------------------------------------ for Python */

API struct virtio_device *shim_virtio_rng_new(void);
API struct virtio_device *shim_virtio_blk_new(int fd, uint64_t sectors, bool read_only,
					      const char *serial);
API struct virtio_device *shim_virtio_net_new(int fd, const uint8_t *mac);
API struct virtio_device *shim_virtio_console_new(int fd, uint64_t keep, uint16_t columns,
						  uint16_t rows);
API unsigned shim_virtio_console_receive(struct virtio_device *device, const uint8_t *data,
					 unsigned length, int space_eventfd);
API unsigned shim_virtio_console_backlog(struct virtio_device *device);
API void shim_virtio_console_redirect(struct virtio_device *device, int fd, uint64_t keep);
API int shim_virtio_console_flush(struct virtio_device *device, int64_t timeout_ns);
API void shim_virtio_console_resize(struct virtio_device *device, uint16_t columns, uint16_t rows);

/* Start: regions sorted by gpa, mapped until shim_virtio_stop() has returned. Stop: the device is
 * reset, and its worker and eventfds are gone. Both from any thread, and stop as often as one
 * likes. Close: stop, and give the back end back. 0 or -errno. */
API int shim_virtio_start(struct virtio_device *device, const struct virtio_region *regions,
			  unsigned count);
API int shim_virtio_set_memory(struct virtio_device *device, const struct virtio_region *regions,
			       unsigned count);
API void shim_virtio_stop(struct virtio_device *device);
API void shim_virtio_close(struct virtio_device *device);
API void shim_virtio_free(struct virtio_device *device);
API const char *shim_virtio_fault(struct virtio_device *device, unsigned *queue);
API int shim_virtio_queue_fd(const struct virtio_device *device, unsigned queue);
API int shim_virtio_interrupt_fd(const struct virtio_device *device);
API unsigned shim_virtio_queues(const struct virtio_device *device);
#define SHIM_VIRTIO_STATISTICS 7
API void shim_virtio_statistics(const struct virtio_device *device, uint64_t *words);

#endif
