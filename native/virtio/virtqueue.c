/*
 * Split virtqueues (VIRTIO 1.2, "2.7 Split Virtqueues"), the device's side.
 *
 * The rings and descriptors lie in guest memory, and another vCPU may change them at any moment.
 * So each field is read once, into a local copy that the compiler cannot read again, and it is the
 * copy that is checked and used. x86 is little endian, as virtio 1.x is.
 */
#include <errno.h>
#include <string.h>

#include "virtio.h"

/* ------------------------------------------------------------------ guest memory */

static const struct virtio_region *region_at(const struct virtio_memory *memory, uint64_t gpa)
{
	for (unsigned i = 0; memory && i < memory->count; i++) {
		const struct virtio_region *region = &memory->regions[i];

		if (gpa >= region->gpa && gpa - region->gpa < region->size)
			return region;
	}
	return NULL;
}

/* [gpa, gpa + size) in one piece, or NULL. */
static void *translate(const struct virtio_memory *memory, uint64_t gpa, uint64_t size,
		       bool writable)
{
	const struct virtio_region *region = region_at(memory, gpa);

	if (!region || size > region->size - (gpa - region->gpa) || (writable && region->read_only))
		return NULL;
	return region->hva + (gpa - region->gpa);
}

/* A descriptor, copied once; the barrier keeps the compiler from going back to the guest's. */
static void copy_descriptor(struct vring_desc *copy, const void *guest)
{
	memcpy(copy, guest, sizeof(*copy));
	__asm__ volatile("" ::: "memory");
}

/* ------------------------------------------------------------------ set-up */

static const char outside[] = "a ring lies outside guest memory, or where it may not be written";

static bool map_rings(struct virtqueue *queue)
{
	const struct virtio_memory *memory = queue->device->memory;
	uint64_t size = queue->size;

	queue->desc = translate(memory, queue->desc_gpa, 16 * size, false);
	queue->avail = translate(memory, queue->avail_gpa, 6 + 2 * size, false);
	queue->used = translate(memory, queue->used_gpa, 6 + 8 * size, true);
	return queue->desc && queue->avail && queue->used;
}

/* VIRTIO 1.2, "2.7 Split Virtqueues": alignment and size of the three parts. Each must lie in one
 * region: a ring across two would need a look-up per entry, and no driver makes one. */
bool virtqueue_start(struct virtqueue *queue, const char **problem)
{
	uint64_t size = queue->size;

	*problem = NULL;
	if (!size || size > queue->size_max || (size & (size - 1)))
		*problem = "the queue size is zero, too large or no power of two";
	else if (queue->desc_gpa % 16 || queue->avail_gpa % 2 || queue->used_gpa % 4)
		*problem = "a ring is misaligned";
	if (*problem)
		return false;
	/* The last two bytes of each ring are used_event and avail_event. */
	if (!map_rings(queue)) {
		*problem = outside;
		return false;
	}
	queue->next_avail = queue->seen_avail = queue->next_used = queue->told_used = 0;
	queue->ready = true;
	return true;
}

void virtqueue_stop(struct virtqueue *queue)
{
	queue->ready = false;
	queue->desc = NULL;
	queue->avail = NULL;
	queue->used = NULL;
}

void virtqueue_remap(struct virtqueue *queue)
{
	if (!queue->ready || map_rings(queue))
		return;
	virtqueue_stop(queue);
	virtio_fail(queue->device, queue, outside);
}

void virtqueue_reset(struct virtqueue *queue)
{
	virtqueue_stop(queue);
	queue->size = 0;
	queue->desc_gpa = queue->avail_gpa = queue->used_gpa = 0;
}

/* ------------------------------------------------------------------ a chain of descriptors */

struct walk {
	const struct virtio_memory *memory;
	struct virtio_chain *chain;
	unsigned capacity;
	unsigned steps; /* descriptors so far */
	const char *problem;
};

enum walked { WALKED, NO_ROOM, BROKEN };

static enum walked broken(struct walk *walk, const char *problem)
{
	walk->problem = problem;
	return BROKEN;
}

/* One buffer becomes one piece of host memory per region that it lies in. */
static enum walked add_buffer(struct walk *walk, uint64_t gpa, uint32_t length, bool writable)
{
	struct virtio_chain *chain = walk->chain;
	uint32_t *bytes = writable ? &chain->writable_bytes : &chain->readable_bytes;

	if (!writable && chain->writable)
		return broken(walk, "a buffer to read comes after one to write");
	if (length > UINT32_MAX - *bytes)
		return broken(walk, "a chain is longer than 4 GiB");
	*bytes += length;
	while (length) {
		const struct virtio_region *region = region_at(walk->memory, gpa);
		unsigned n = chain->readable + chain->writable;
		uint64_t offset, size;

		if (!region)
			return broken(walk, "a buffer lies outside guest memory");
		if (writable && region->read_only)
			return broken(walk, "a buffer to write lies in read-only memory");
		if (n == walk->capacity)
			return n == VIRTIO_SEGMENTS ? broken(walk, "a chain has too many pieces")
						    : NO_ROOM;
		offset = gpa - region->gpa;
		size = region->size - offset < length ? region->size - offset : length;
		chain->iov[n] = (struct iovec){ region->hva + offset, size };
		*(writable ? &chain->writable : &chain->readable) += 1;
		gpa += size; /* regions end below 2^52: no wrap */
		length -= size;
	}
	return WALKED;
}

/*
 * From descriptor `next` of a table to the end of its chain. A chain has no more descriptors than
 * its table has entries, else it loops; an indirect table may say it has millions, so the total is
 * bounded too. Gives back the descriptor of an indirect table, if the chain ends with one.
 */
static enum walked walk_table(struct walk *walk, const uint8_t *table, uint32_t entries,
			      uint16_t next, struct vring_desc *indirect)
{
	for (uint32_t left = entries; left; left--) {
		struct vring_desc desc;
		enum walked result;

		if (next >= entries)
			return broken(walk, "a descriptor's number is past its table");
		if (walk->steps++ == VIRTIO_SEGMENTS + 1) /* and the one that is the table's */
			return broken(walk, "a chain has too many descriptors");
		copy_descriptor(&desc, table + 16 * (uint32_t)next);
		if (desc.flags & VRING_DESC_F_INDIRECT) {
			if (!indirect)
				return broken(walk, "an indirect descriptor where none may be");
			if (desc.flags & VRING_DESC_F_NEXT)
				return broken(walk, "an indirect descriptor with a next one");
			*indirect = desc;
			return WALKED;
		}
		result = add_buffer(walk, desc.addr, desc.len, desc.flags & VRING_DESC_F_WRITE);
		if (result != WALKED || !(desc.flags & VRING_DESC_F_NEXT))
			return result;
		next = desc.next;
	}
	return broken(walk, "a chain loops");
}

static enum walked walk_chain(struct walk *walk, struct virtqueue *queue)
{
	bool may_be_indirect = virtio_has(queue->device, VIRTIO_RING_F_INDIRECT_DESC);
	struct vring_desc indirect = { 0 };
	const uint8_t *table = (const uint8_t *)queue->desc;
	enum walked result = walk_table(walk, table, queue->size, walk->chain->head,
					may_be_indirect ? &indirect : NULL);

	if (result != WALKED || !(indirect.flags & VRING_DESC_F_INDIRECT))
		return result;
	if (!indirect.len || indirect.len % 16)
		return broken(walk, "an indirect table is no whole number of descriptors");
	table = translate(walk->memory, indirect.addr, indirect.len, false);
	if (!table)
		return broken(walk, "an indirect table lies outside guest memory");
	return walk_table(walk, table, indirect.len / 16, 0, NULL);
}

/* ------------------------------------------------------------------ the rings */

/* Look at avail->idx. The acquire is the driver's write barrier's other half: entries and
 * descriptors up to that index are read after it. */
static bool look(struct virtqueue *queue)
{
	queue->seen_avail = __atomic_load_n(&queue->avail->idx, __ATOMIC_ACQUIRE);
	return queue->seen_avail != queue->next_avail;
}

bool virtqueue_empty(struct virtqueue *queue)
{
	return !queue->ready || !look(queue);
}

static int pop_failed(struct virtqueue *queue, const char *problem)
{
	virtio_fail(queue->device, queue, problem);
	return -EPROTO;
}

int virtqueue_pop(struct virtqueue *queue, struct virtio_chain *chain, struct iovec *iov,
		  unsigned capacity)
{
	struct walk walk = {
		.memory = queue->device->memory, .chain = chain, .capacity = capacity,
	};

	if (!queue->ready || !queue->device->live)
		return -EPROTO;
	if (queue->seen_avail == queue->next_avail && !look(queue))
		return 0;
	if ((uint16_t)(queue->seen_avail - queue->next_avail) > queue->size)
		return pop_failed(queue, "the available index runs ahead of the queue's size");
	*chain = (struct virtio_chain){ .iov = iov };
	chain->head = __atomic_load_n(&queue->avail->ring[queue->next_avail & (queue->size - 1)],
				      __ATOMIC_RELAXED);
	switch (walk_chain(&walk, queue)) {
	case NO_ROOM:
		return -ENOBUFS;
	case BROKEN:
		return pop_failed(queue, walk.problem);
	case WALKED:
		break;
	}
	queue->next_avail++;
	return 1;
}

void virtqueue_unpop(struct virtqueue *queue, unsigned count)
{
	queue->next_avail -= count;
	virtqueue_kick(queue);
}

void virtqueue_push(struct virtqueue *queue, const struct virtio_chain *chain, uint32_t written)
{
	struct vring_used_elem *element;

	if (!queue->ready)
		return;
	element = &queue->used->ring[queue->next_used++ & (queue->size - 1)];
	__atomic_store_n(&element->id, chain->head, __ATOMIC_RELAXED);
	__atomic_store_n(&element->len, written, __ATOMIC_RELAXED);
	virtio_count(&queue->device->statistics.requests, 1);
}

static bool wants_interrupt(const struct virtqueue *queue, uint16_t before)
{
	if (virtio_has(queue->device, VIRTIO_RING_F_EVENT_IDX)) {
		uint16_t event = __atomic_load_n(&queue->avail->ring[queue->size],
						 __ATOMIC_RELAXED); /* used_event */

		return vring_need_event(event, queue->next_used, before);
	}
	return !(__atomic_load_n(&queue->avail->flags, __ATOMIC_RELAXED) &
		 VRING_AVAIL_F_NO_INTERRUPT);
}

void virtqueue_publish(struct virtqueue *queue)
{
	uint16_t before = queue->told_used;

	if (!queue->ready || before == queue->next_used)
		return;
	/* Release: the driver that sees the index sees the elements, and the data. */
	__atomic_store_n(&queue->used->idx, queue->next_used, __ATOMIC_RELEASE);
	queue->told_used = queue->next_used;
	/* The driver sets used_event (flags) and then looks at used->idx once more; we set used->idx
	 * and then look at used_event. Unless each side's store is visible before its load, both
	 * could miss: a full fence, since x86 lets a load pass an earlier store. */
	atomic_thread_fence(memory_order_seq_cst);
	if (wants_interrupt(queue, before))
		virtio_interrupt(queue->device, VIRTIO_MMIO_INT_VRING);
}

static bool has_event_idx(const struct virtqueue *queue)
{
	return virtio_has(queue->device, VIRTIO_RING_F_EVENT_IDX);
}

/* With the event index there is nothing to do: avail_event stays where the driver has passed it. */
void virtqueue_quiet(struct virtqueue *queue)
{
	if (queue->ready && !has_event_idx(queue))
		__atomic_store_n(&queue->used->flags, VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool virtqueue_listen(struct virtqueue *queue)
{
	if (!queue->ready || !queue->device->live)
		return false;
	if (has_event_idx(queue)) {
		uint16_t *avail_event = (uint16_t *)&queue->used->ring[queue->size];

		__atomic_store_n(avail_event, queue->next_avail, __ATOMIC_RELAXED);
	} else {
		__atomic_store_n(&queue->used->flags, 0, __ATOMIC_RELAXED);
	}
	/* As in virtqueue_publish(), the other way round: say that a notification is wanted, then
	 * look whether one was already left out. */
	atomic_thread_fence(memory_order_seq_cst);
	if (virtio_wanted(queue->device)) {
		virtqueue_kick(queue); /* come back */
		return false;
	}
	return look(queue);
}

/* ------------------------------------------------------------------ a chain's bytes */

bool virtio_chain_read(struct virtio_chain *chain, void *data, uint32_t size)
{
	uint8_t *out = data;

	if (size > chain->readable_bytes)
		return false;
	chain->readable_bytes -= size;
	while (size) {
		struct iovec *piece = chain->iov;
		size_t n = piece->iov_len < size ? piece->iov_len : size;

		memcpy(out, piece->iov_base, n);
		out += n;
		size -= n;
		piece->iov_base = (uint8_t *)piece->iov_base + n;
		piece->iov_len -= n;
		if (!piece->iov_len) {
			chain->iov++;
			chain->readable--;
		}
	}
	__asm__ volatile("" ::: "memory"); /* it is the copy that is looked at from here on */
	return true;
}

uint32_t virtio_chain_write(const struct virtio_chain *chain, const void *data, uint32_t size)
{
	const struct iovec *piece = chain->iov + chain->readable;
	const uint8_t *in = data;
	uint32_t done = 0;

	if (size > chain->writable_bytes)
		size = chain->writable_bytes;
	for (; done < size; piece++) {
		size_t n = piece->iov_len < size - done ? piece->iov_len : size - done;

		memcpy(piece->iov_base, in + done, n);
		done += n;
	}
	return size;
}

uint8_t *virtio_chain_last(struct virtio_chain *chain)
{
	struct iovec *piece = chain->iov + chain->readable + chain->writable - 1;

	if (!chain->writable)
		return NULL;
	chain->writable_bytes--;
	if (!--piece->iov_len)
		chain->writable--;
	return (uint8_t *)piece->iov_base + piece->iov_len;
}
