/*
 * Block device (VIRTIO 1.2, "5.2 Block Device") over a raw file.
 *
 * A pass takes what is in the ring, up to PASS_BYTES, and serves it in the ring's order. Requests
 * that continue each other on the disk become one preadv() or pwritev(), straight from or to guest
 * memory. The driver is told once per pass.
 */
#define _GNU_SOURCE /* fallocate, preadv2 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "virtio.h"

#define SECTOR 512
#define QUEUE_SIZE 256
#define PASS_REQUESTS 64
/* Longer makes the guest wait for the first of them, shorter makes it take more interrupts. */
#define PASS_BYTES (1 << 20)

#define MAX_DISCARD_SECTORS 0x400000 /* 2 GiB */
#define MAX_DISCARD_SEGMENTS 32
#define MAX_ZEROES_SECTORS 0x20000 /* 64 MiB: they may have to be written */
#define MAX_ZEROES_SEGMENTS 1
#define ZEROES 65536

struct request {
	struct virtio_chain chain; /* the data alone: without header and status */
	uint32_t type;
	uint64_t sector;
	uint8_t *status;
	uint32_t answer; /* bytes of the writable part */
};

struct blk {
	struct virtio_device virtio;
	int fd;
	uint64_t sectors;
	bool read_only;
	char serial[VIRTIO_BLK_ID_BYTES];
	unsigned requests, pieces;
	struct request request[PASS_REQUESTS];
	struct iovec iov[VIRTIO_SEGMENTS];
};

static bool is_data(const struct request *request)
{
	return request->type == VIRTIO_BLK_T_IN || request->type == VIRTIO_BLK_T_OUT;
}

static struct iovec *data_of(const struct request *request, unsigned *pieces, uint32_t *bytes)
{
	const struct virtio_chain *chain = &request->chain;
	bool in = request->type == VIRTIO_BLK_T_IN;

	*pieces = in ? chain->writable : chain->readable;
	*bytes = in ? chain->writable_bytes : chain->readable_bytes;
	return chain->iov + (in ? chain->readable : 0);
}

/* ------------------------------------------------------------------ taking requests */

/* Header and status come off the chain. What is left moves to the front of the free pieces, so
 * that the data of requests one after another lies in one array, as preadv() wants it. */
static bool parse(struct blk *blk, struct request *request)
{
	struct virtio_chain *chain = &request->chain;
	struct virtio_blk_outhdr header;
	uint32_t bytes;

	request->answer = chain->writable_bytes;
	request->status = virtio_chain_last(chain);
	if (!request->status || !virtio_chain_read(chain, &header, sizeof(header)))
		return false;
	request->type = header.type;
	request->sector = header.sector;
	if (is_data(request)) {
		unsigned pieces;
		struct iovec *data = data_of(request, &pieces, &bytes);

		memmove(blk->iov + blk->pieces, data, pieces * sizeof(*data));
		chain->iov = blk->iov + blk->pieces;
		chain->readable = request->type == VIRTIO_BLK_T_OUT ? pieces : 0;
		chain->writable = request->type == VIRTIO_BLK_T_IN ? pieces : 0;
		blk->pieces += pieces;
	} else {
		blk->pieces = chain->iov + chain->readable + chain->writable - blk->iov;
	}
	return true;
}

/* Fills request[] from the ring; how many. */
static unsigned gather(struct blk *blk, struct virtqueue *queue)
{
	uint64_t bytes = 0;

	blk->requests = blk->pieces = 0;
	while (blk->requests < PASS_REQUESTS && bytes < PASS_BYTES && !virtio_wanted(&blk->virtio)) {
		struct request *request = &blk->request[blk->requests];

		if (virtqueue_pop(queue, &request->chain, blk->iov + blk->pieces,
				  VIRTIO_SEGMENTS - blk->pieces) <= 0)
			break;
		if (!parse(blk, request)) {
			virtio_fail(&blk->virtio, queue, "a request without header or status");
			break;
		}
		bytes += request->chain.readable_bytes + request->chain.writable_bytes;
		blk->requests++;
	}
	return blk->requests;
}

/* ------------------------------------------------------------------ reading and writing */

static bool within(const struct blk *blk, uint64_t sector, uint64_t sectors)
{
	return sector <= blk->sectors && sectors <= blk->sectors - sector;
}

static bool may_transfer(const struct blk *blk, const struct request *request)
{
	unsigned pieces;
	uint32_t bytes;

	data_of(request, &pieces, &bytes);
	return is_data(request) && !(bytes % SECTOR) &&
	       within(blk, request->sector, bytes / SECTOR) &&
	       !(request->type == VIRTIO_BLK_T_OUT && blk->read_only);
}

/* How many bytes came across; fewer than all: an error, or the file has been cut short. The pieces
 * that were transferred are used up. */
static uint64_t transfer(int fd, bool is_write, int flags, struct iovec *iov, unsigned pieces,
			 uint64_t offset)
{
	uint64_t done = 0;

	while (pieces) {
		ssize_t n = is_write ? pwritev2(fd, iov, pieces, offset + done, flags)
				     : preadv2(fd, iov, pieces, offset + done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += n;
		for (; pieces && (size_t)n >= iov->iov_len; iov++, pieces--)
			n -= iov->iov_len;
		if (pieces) {
			iov->iov_base = (uint8_t *)iov->iov_base + n;
			iov->iov_len -= n;
		}
	}
	return done;
}

/* A driver that does not flush expects its writes to last as soon as they are done. */
static int write_flags(const struct blk *blk)
{
	return virtio_has(&blk->virtio, VIRTIO_BLK_F_FLUSH) ? 0 : RWF_DSYNC;
}

static void set_status(struct blk *blk, struct request *request, uint8_t status)
{
	*request->status = status;
	if (status != VIRTIO_BLK_S_OK)
		virtio_count(&blk->virtio.statistics.errors, 1);
}

/* request[first] and those that continue it: where the next one begins, and how much there is. */
static unsigned find_run(const struct blk *blk, unsigned first, unsigned *pieces)
{
	const struct request *request = &blk->request[first];
	uint64_t sector = request->sector;
	unsigned i = first;

	*pieces = 0;
	while (i < blk->requests && blk->request[i].type == request->type &&
	       blk->request[i].sector == sector && may_transfer(blk, &blk->request[i])) {
		unsigned n;
		uint32_t bytes;

		data_of(&blk->request[i++], &n, &bytes);
		*pieces += n;
		sector += bytes / SECTOR;
	}
	return i;
}

/* A run of requests in one go. One that fails ends it: those before are done, those after are
 * tried again by the caller. Gives the next request to serve. */
static unsigned serve_run(struct blk *blk, unsigned first)
{
	struct request *request = &blk->request[first];
	bool is_write = request->type == VIRTIO_BLK_T_OUT;
	unsigned pieces, end = find_run(blk, first, &pieces);
	uint64_t done = transfer(blk->fd, is_write, write_flags(blk), request->chain.iov, pieces,
				 request->sector * SECTOR);

	virtio_count(is_write ? &blk->virtio.statistics.bytes_out
			      : &blk->virtio.statistics.bytes_in, done);
	for (; first < end; first++) {
		unsigned n;
		uint32_t bytes;

		data_of(&blk->request[first], &n, &bytes);
		if (bytes > done) {
			set_status(blk, &blk->request[first], VIRTIO_BLK_S_IOERR);
			return first + 1;
		}
		done -= bytes;
		set_status(blk, &blk->request[first], VIRTIO_BLK_S_OK);
	}
	return end;
}

/* ------------------------------------------------------------------ the other requests */

static bool write_zeroes(struct blk *blk, uint64_t offset, uint64_t size)
{
	static const uint8_t zeroes[ZEROES];

	while (size) {
		uint64_t n = size < ZEROES ? size : ZEROES;
		struct iovec iov = { (void *)zeroes, n };

		if (transfer(blk->fd, true, write_flags(blk), &iov, 1, offset) != n)
			return false;
		offset += n;
		size -= n;
	}
	return true;
}

static bool punch(const struct blk *blk, int mode, uint64_t offset, uint64_t size)
{
	int result;

	do
		result = fallocate(blk->fd, mode | FALLOC_FL_KEEP_SIZE, offset, size);
	while (result < 0 && errno == EINTR);
	/* A driver that does not flush takes "done" for "stored". */
	return !result && (!write_flags(blk) || !fdatasync(blk->fd));
}

/* After a write-zeroes the sectors read as zeros, whatever the file system can do; a discard is
 * nothing if it cannot be done. */
static uint8_t erase(struct blk *blk, uint32_t type,
		     const struct virtio_blk_discard_write_zeroes *segment)
{
	bool discard = type == VIRTIO_BLK_T_DISCARD, unmap = segment->flags & 1;
	uint64_t offset = segment->sector * SECTOR, size = (uint64_t)segment->num_sectors * SECTOR;

	if (segment->flags & ~(discard ? 0u : 1u))
		return VIRTIO_BLK_S_UNSUPP;
	if (segment->num_sectors > (discard ? MAX_DISCARD_SECTORS : MAX_ZEROES_SECTORS) ||
	    !within(blk, segment->sector, segment->num_sectors))
		return VIRTIO_BLK_S_IOERR;
	if (!size || ((discard || unmap) && punch(blk, FALLOC_FL_PUNCH_HOLE, offset, size)))
		return VIRTIO_BLK_S_OK;
	if (discard)
		return errno == EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
	return punch(blk, FALLOC_FL_ZERO_RANGE, offset, size) || write_zeroes(blk, offset, size)
		       ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
}

static uint8_t serve_erase(struct blk *blk, struct request *request)
{
	struct virtio_blk_discard_write_zeroes segment;
	uint32_t bytes = request->chain.readable_bytes, most = MAX_ZEROES_SEGMENTS;
	uint8_t status = VIRTIO_BLK_S_OK;

	if (request->type == VIRTIO_BLK_T_DISCARD) {
		most = MAX_DISCARD_SEGMENTS;
		if (!(blk->virtio.features >> VIRTIO_BLK_F_DISCARD & 1))
			return VIRTIO_BLK_S_UNSUPP;
	}
	if (blk->read_only || !bytes || bytes % sizeof(segment) || bytes > most * sizeof(segment))
		return VIRTIO_BLK_S_IOERR;
	while (status == VIRTIO_BLK_S_OK &&
	       virtio_chain_read(&request->chain, &segment, sizeof(segment)))
		status = erase(blk, request->type, &segment);
	return status;
}

static uint8_t serve_other(struct blk *blk, struct request *request)
{
	switch (request->type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT: /* refused by may_transfer() */
		return VIRTIO_BLK_S_IOERR;
	case VIRTIO_BLK_T_FLUSH:
		return fdatasync(blk->fd) ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_GET_ID:
		virtio_chain_write(&request->chain, blk->serial, sizeof(blk->serial));
		return VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return serve_erase(blk, request);
	}
	return VIRTIO_BLK_S_UNSUPP;
}

static void serve_all(struct blk *blk, struct virtqueue *queue)
{
	for (unsigned i = 0; i < blk->requests;) {
		struct request *request = &blk->request[i];

		if (may_transfer(blk, request)) {
			i = serve_run(blk, i);
		} else {
			set_status(blk, request, serve_other(blk, request));
			i++;
		}
	}
	/* The length counts the whole writable part: its last byte, the status, is always there. */
	for (unsigned i = 0; i < blk->requests; i++)
		virtqueue_push(queue, &blk->request[i].chain, blk->request[i].answer);
	virtqueue_publish(queue);
}

static void notify(struct virtio_device *device, struct virtqueue *queue)
{
	struct blk *blk = (struct blk *)device;

	do {
		virtqueue_quiet(queue);
		while (gather(blk, queue))
			serve_all(blk, queue);
	} while (virtqueue_listen(queue));
}

/* ------------------------------------------------------------------ life */

static void close_file(struct virtio_device *device)
{
	struct blk *blk = (struct blk *)device;

	close(blk->fd);
	blk->fd = -1;
}

static void offer(struct virtio_device *device, unsigned feature)
{
	device->features |= 1ull << feature;
}

/* Whether the file system makes holes: behind the end there is nothing to lose by trying. A block
 * device refuses that, and gets no discards. */
static bool makes_holes(const struct blk *blk)
{
	return !fallocate(blk->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  blk->sectors * SECTOR, SECTOR);
}

static void describe(struct blk *blk)
{
	struct virtio_device *device = &blk->virtio;
	struct virtio_blk_config config = {
		.capacity = blk->sectors,
		.seg_max = QUEUE_SIZE - 2, /* header and status are pieces too */
		.blk_size = SECTOR,
	};

	offer(device, VIRTIO_BLK_F_SEG_MAX);
	offer(device, VIRTIO_BLK_F_BLK_SIZE);
	if (blk->read_only) {
		offer(device, VIRTIO_BLK_F_RO);
	} else {
		offer(device, VIRTIO_BLK_F_FLUSH);
		offer(device, VIRTIO_BLK_F_WRITE_ZEROES);
		config.max_write_zeroes_sectors = MAX_ZEROES_SECTORS;
		config.max_write_zeroes_seg = MAX_ZEROES_SEGMENTS;
		config.write_zeroes_may_unmap = 1;
	}
	if (!blk->read_only && makes_holes(blk)) {
		offer(device, VIRTIO_BLK_F_DISCARD);
		config.max_discard_sectors = MAX_DISCARD_SECTORS;
		config.max_discard_seg = MAX_DISCARD_SEGMENTS;
		config.discard_sector_alignment = 4096 / SECTOR;
	}
	device->config_size = offsetof(struct virtio_blk_config, unused1) + sizeof(config.unused1);
	memcpy(device->config, &config, device->config_size);
}

/* fd becomes the device's, unless there is no memory for one (NULL). serial: up to 20 bytes, what
 * is missing is zero. */
struct virtio_device *shim_virtio_blk_new(int fd, uint64_t sectors, bool read_only,
					  const char *serial)
{
	static const struct virtio_ops ops = {
		.name = "kvmpy-blk", .notify = notify, .close = close_file,
	};
	struct blk *blk = calloc(1, sizeof(*blk));

	if (!blk)
		return NULL;
	virtio_init(&blk->virtio, &ops, VIRTIO_ID_BLOCK, 1, QUEUE_SIZE);
	blk->fd = fd;
	blk->sectors = sectors;
	blk->read_only = read_only;
	memcpy(blk->serial, serial, strnlen(serial, sizeof(blk->serial)));
	describe(blk);
	return &blk->virtio;
}
