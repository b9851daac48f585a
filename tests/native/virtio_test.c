/*
 * Virtio devices against a driver that does anything at all, without KVM and without Python: for
 * the sanitizers. Guest memory is two allocations of just its size, so that a byte past either end
 * is seen.
 */
#define _GNU_SOURCE /* memfd_create */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "virtio.h"

#define LOW_SIZE 0x20000
#define HIGH_GPA 0x40000
#define HIGH_SIZE 0x4000
#define DESC 0x1000
#define AVAIL 0x2000
#define USED 0x3000
#define TABLE 0x4000
#define BUFFER 0x8000
#define SIZE 16
#define SECTORS 64

static uint8_t *low, *high;
static struct virtio_region regions[2];
static struct virtio_device *device;
static int wire = -1; /* the other end of a back end that is a socket */
static bool is_console;

/* ------------------------------------------------------------------ a driver */

static void reach(uint64_t offset, void *data, unsigned size, bool is_write)
{
	struct shim_device *shim = &device->device;

	CHECK_EQUAL(shim->access(shim, NULL, offset, data, size, is_write), SHIM_CONTINUE);
}

static uint32_t get(unsigned offset)
{
	uint32_t value = UINT32_MAX;

	reach(offset, &value, 4, false);
	return value;
}

static void put(unsigned offset, uint32_t value)
{
	reach(offset, &value, 4, true);
}

static void bring_up(uint32_t features)
{
	put(VIRTIO_MMIO_STATUS, 0);
	put(VIRTIO_MMIO_STATUS, 3);
	put(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	put(VIRTIO_MMIO_DRIVER_FEATURES, features);
	put(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	put(VIRTIO_MMIO_DRIVER_FEATURES, 1);
	put(VIRTIO_MMIO_STATUS, 11);
	CHECK_EQUAL(get(VIRTIO_MMIO_STATUS), 11);
	memset(low, 0, BUFFER);
	/* All queues in the same place: what one is offered, the next is too. */
	for (unsigned i = 0; i < device->queues; i++) {
		put(VIRTIO_MMIO_QUEUE_SEL, i);
		put(VIRTIO_MMIO_QUEUE_NUM, SIZE);
		put(VIRTIO_MMIO_QUEUE_DESC_LOW, DESC);
		put(VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL);
		put(VIRTIO_MMIO_QUEUE_USED_LOW, USED);
		put(VIRTIO_MMIO_QUEUE_READY, 1);
		CHECK_EQUAL(get(VIRTIO_MMIO_QUEUE_READY), 1);
	}
	put(VIRTIO_MMIO_STATUS, 15);
}

/* Once the worker has taken the notification, changing a queue waits until it is done with it. */
static void settle(void)
{
	for (unsigned i = 0; i < device->queues; i++) {
		uint64_t notifications = atomic_load(&device->statistics.notifications);

		put(VIRTIO_MMIO_QUEUE_NOTIFY, i);
		while (atomic_load(&device->statistics.notifications) == notifications)
			usleep(10);
		put(VIRTIO_MMIO_QUEUE_READY, 2);
	}
}

/* ------------------------------------------------------------------ chance */

static uint64_t seed = 88172645463325252ull;

static uint64_t any(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static uint64_t one_of(const uint64_t *choices, unsigned count)
{
	return choices[any() % count];
}
#define ONE_OF(...) one_of((uint64_t[]){ __VA_ARGS__ }, sizeof((uint64_t[]){ __VA_ARGS__ }) / 8)

static struct vring_desc random_descriptor(void)
{
	return (struct vring_desc){
		.addr = ONE_OF(BUFFER + any() % 0x1000, TABLE, LOW_SIZE - any() % 64, any(),
			       HIGH_GPA + any() % HIGH_SIZE, HIGH_GPA + HIGH_SIZE - any() % 64,
			       UINT64_MAX - any() % 64, HIGH_GPA - any() % 16, any() % LOW_SIZE),
		.len = ONE_OF(16, 1, 512, any() % 64, any() % 0x4000, 16 * (any() % 40), any(), 0),
		.flags = ONE_OF(0, 1, 2, 3, 4, any()),
		.next = ONE_OF(any() % SIZE, any() % SIZE, any() % 64, any()),
	};
}

static void random_rings(void)
{
	struct vring_desc *desc = (void *)(low + DESC), *table = (void *)(low + TABLE);
	struct vring_avail *avail = (void *)(low + AVAIL);

	for (unsigned i = 0; i < SIZE; i++) {
		desc[i] = random_descriptor();
		avail->ring[i] = ONE_OF(any() % SIZE, any() % SIZE, any() % SIZE, any());
	}
	for (unsigned i = 0; i < 64; i++)
		table[i] = random_descriptor();
	for (unsigned i = 0; i < 64; i++) /* headers of block requests */
		((uint64_t *)(low + BUFFER))[any() % 0x200] = any() % 16;
	avail->flags = any();
	avail->ring[SIZE] = any();
	avail->idx = ONE_OF(any() % SIZE, SIZE, SIZE + 1, any());
}

/* Block requests that are nearly right: five chains of header, data and status. */
static void likely_requests(void)
{
	struct vring_desc *desc = (void *)(low + DESC);
	struct vring_avail *avail = (void *)(low + AVAIL);
	uint64_t *data = (void *)(low + BUFFER + 0x1000);

	for (unsigned i = 0; i + 3 <= SIZE; i += 3) {
		uint64_t *header = (void *)(low + BUFFER + 16 * i);
		uint16_t direction = ONE_OF(0, VRING_DESC_F_WRITE);

		header[0] = ONE_OF(direction ? 0 : 1, direction ? 0 : 1, 4, 8, 11, 13, any() % 16);
		header[1] = any() % (SECTORS + 2);
		desc[i] = (struct vring_desc){ BUFFER + 16 * i, 16, 1, i + 1 };
		desc[i + 1] = (struct vring_desc){
			ONE_OF(BUFFER + 0x1000, HIGH_GPA, LOW_SIZE - 512),
			ONE_OF(512, 1024, 16, 20, 48, 0x2000), 1 | direction, i + 2,
		};
		desc[i + 2] = (struct vring_desc){ BUFFER + 0x800 + i, 1, 2, 0 };
		avail->ring[i / 3] = i;
	}
	for (unsigned i = 0; i < 8; i += 2) { /* of discards */
		data[i] = any() % (SECTORS + 2);
		data[i + 1] = any() % 20 | (uint64_t)ONE_OF(0, 0, 1, 2) << 32;
	}
	if (any() % 4 == 0)
		desc[any() % SIZE] = random_descriptor();
	avail->ring[SIZE] = any();
	avail->idx = SIZE / 3;
}

/* Frames or input come in, and what came out is taken, or not. */
static void use_wire(void)
{
	static uint8_t data[70000];
	unsigned size = ONE_OF(1, 12, 26, 60, 1526, any() % 2000, 65565, 65566, sizeof(data));

	if (is_console)
		shim_virtio_console_receive(device, data, size, -1);
	if (wire >= 0 && any() % 2)
		send(wire, data, size, MSG_DONTWAIT);
	for (unsigned i = any() % 64; wire >= 0 && i; i--)
		if (recv(wire, data, sizeof(data), MSG_DONTWAIT) < 0)
			break;
	if (is_console && any() % 8 == 0)
		shim_virtio_console_flush(device, 100000);
}

static void any_rings(unsigned rounds)
{
	for (unsigned i = 0; i < rounds; i++) {
		use_wire();
		bring_up(device->features &
			 ONE_OF(0, 1u << 28, 1u << 29, 1u << 15, UINT32_MAX & ~(1u << 28), UINT32_MAX));
		if (any() % 2)
			random_rings();
		else
			likely_requests();
		settle();
		CHECK(get(VIRTIO_MMIO_STATUS) != 0);
	}
}

/* ------------------------------------------------------------------ another vCPU */

static _Atomic bool over;

static void *rewrite(void *argument)
{
	uint64_t state = 1;

	(void)argument;
	while (!atomic_load(&over)) {
		struct vring_desc *desc = (void *)(low + (state & 1 ? DESC : TABLE));

		state = state * 6364136223846793005ull + 1442695040888963407ull;
		desc += state >> 60;
		switch (state >> 32 & 3) {
		case 0:
			__atomic_store_n(&desc->addr, state >> 40, __ATOMIC_RELAXED);
			break;
		case 1:
			__atomic_store_n(&desc->len, state >> 50, __ATOMIC_RELAXED);
			break;
		case 2:
			__atomic_store_n(&desc->flags, state >> 33 & 7, __ATOMIC_RELAXED);
			break;
		default:
			__atomic_store_n(&desc->next, state >> 33 & (SIZE - 1), __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

static void *access_registers(void *argument)
{
	uint64_t state = (uintptr_t)argument;

	while (!atomic_load(&over)) {
		uint64_t value;

		state = state * 6364136223846793005ull + 1442695040888963407ull;
		value = state >> 7;
		reach(state >> 20 & 0x1ff, &value, 1u << (state >> 60 & 3), state >> 59 & 1);
	}
	return NULL;
}

static void beside(void *(*other)(void *), unsigned rounds, void (*body)(unsigned))
{
	pthread_t thread;

	atomic_store(&over, false);
	CHECK(!pthread_create(&thread, NULL, other, (void *)99));
	body(rounds);
	atomic_store(&over, true);
	pthread_join(thread, NULL);
}

/* The registers may be in any state meanwhile, so nothing is waited for. */
static void restart(unsigned rounds)
{
	for (unsigned i = 0; i < rounds; i++) {
		random_rings();
		put(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
		shim_virtio_stop(device);
		CHECK(!shim_virtio_start(device, regions, 2));
	}
}

static void with_device(struct virtio_device *made, unsigned rounds)
{
	device = made;
	CHECK(device);
	CHECK(!shim_virtio_start(device, regions, 2));
	CHECK_EQUAL(shim_virtio_start(device, regions, 2), -EBUSY);
	any_rings(rounds);
	beside(rewrite, rounds, any_rings);
	beside(access_registers, rounds / 10, restart);
	shim_virtio_stop(device);
	shim_virtio_close(device);
	CHECK_EQUAL(shim_virtio_start(device, regions, 2), -EBADF);
	shim_virtio_free(device);
}

/* A back end whose other end is `wire`. */
static int new_wire(int type)
{
	int ends[2];

	CHECK(!socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends));
	wire = ends[0];
	return ends[1];
}

static void close_wire(void)
{
	close(wire);
	wire = -1;
}

static void with_network(unsigned rounds)
{
	int fd = new_wire(SOCK_SEQPACKET);

	with_device(shim_virtio_net_new(fd, (const uint8_t *)"\x52\x54\0kvm"), rounds);
	close_wire();
}

static void with_console(unsigned rounds)
{
	int pipes[2], memory = memfd_create("output", MFD_CLOEXEC);

	is_console = true;
	with_device(shim_virtio_console_new(memory, 4096, 80, 25), rounds);
	with_device(shim_virtio_console_new(new_wire(SOCK_STREAM), 0, 80, 25), rounds);
	close_wire();
	CHECK(!pipe2(pipes, O_CLOEXEC));
	close(pipes[0]); /* nobody reads */
	with_device(shim_virtio_console_new(pipes[1], 0, 80, 25), rounds);
	is_console = false;
}

int main(int argc, char **argv)
{
	unsigned rounds = argc > 1 ? atoi(argv[1]) : 2000;
	int disk = memfd_create("disk", MFD_CLOEXEC), reader;

	low = aligned_alloc(4096, LOW_SIZE);
	high = aligned_alloc(4096, HIGH_SIZE);
	CHECK(low && high && disk >= 0 && !ftruncate(disk, SECTORS * 512));
	memset(low, 0, LOW_SIZE);
	memset(high, 0, HIGH_SIZE);
	regions[0] = (struct virtio_region){ 0, LOW_SIZE, low, false };
	regions[1] = (struct virtio_region){ HIGH_GPA, HIGH_SIZE, high, true };
	reader = dup(disk);
	with_device(shim_virtio_rng_new(), rounds);
	with_device(shim_virtio_blk_new(reader, SECTORS, true, "read-only"), rounds);
	regions[1].read_only = false;
	with_device(shim_virtio_blk_new(disk, SECTORS, false, "twenty characters ok"), rounds);
	with_network(rounds);
	with_console(rounds);
	free(low);
	free(high);
	puts("virtio: ok");
	return 0;
}
