/*
 * Entropy device (VIRTIO 1.2, "5.4 Entropy Device"): the host kernel's random numbers, straight
 * into the guest's buffers.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "virtio.h"

/* A driver asks for some bytes to some KiB, and must cope with fewer than it asked for. A chain
 * of gigabytes would keep a pCPU busy for nothing. */
#define MOST 65536

struct rng {
	struct virtio_device virtio;
	struct iovec iov[VIRTIO_SEGMENTS];
};

static uint32_t fill(const struct virtio_chain *chain)
{
	const struct iovec *piece = chain->iov + chain->readable, *end = piece + chain->writable;
	uint32_t done = 0;

	for (; piece < end && done < MOST; piece++) {
		size_t size = piece->iov_len < MOST - done ? piece->iov_len : MOST - done;
		size_t filled = 0;

		while (filled < size) {
			ssize_t n = getrandom((uint8_t *)piece->iov_base + filled, size - filled, 0);

			if (n < 0 && errno != EINTR)
				return done + filled;
			filled += n < 0 ? 0 : n;
		}
		done += size;
	}
	return done;
}

static void notify(struct virtio_device *device, struct virtqueue *queue)
{
	struct rng *rng = (struct rng *)device;
	struct virtio_chain chain;

	do {
		virtqueue_quiet(queue);
		while (!virtio_wanted(device) &&
		       virtqueue_pop(queue, &chain, rng->iov, VIRTIO_SEGMENTS) > 0) {
			uint32_t written = fill(&chain);

			virtqueue_push(queue, &chain, written);
			virtio_count(&device->statistics.bytes_in, written);
		}
		virtqueue_publish(queue);
	} while (virtqueue_listen(queue));
}

struct virtio_device *shim_virtio_rng_new(void)
{
	static const struct virtio_ops ops = { .name = "kvmpy-rng", .notify = notify };
	struct rng *rng = calloc(1, sizeof(*rng));

	if (!rng)
		return NULL;
	virtio_init(&rng->virtio, &ops, VIRTIO_ID_RNG, 1, 64);
	return &rng->virtio;
}
