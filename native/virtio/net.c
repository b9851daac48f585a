/*
 * Network device (VIRTIO 1.2, "5.1 Network Device") over a tap interface, or over a datagram socket
 * whose messages are what a tap's are: struct virtio_net_hdr_v1, then the frame.
 *
 * Frames go by one readv() or writev() each, straight to and from guest memory. Checksums and
 * segmentation are left to whoever comes last: the header that says so is the same on both sides,
 * and the kernel's tap checks it against the frame.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "virtio.h"

#define QUEUE_SIZE 256
#define RX 0
#define TX 1
/* Frames before the other direction has its turn, and before the driver hears of them. */
#define PASS_FRAMES 64

#define HEADER sizeof(struct virtio_net_hdr_v1)
#define FRAME_LEAST 14   /* an Ethernet header */
#define FRAME_MOST 65553 /* an IP packet of 64 KiB - 1, behind Ethernet and VLAN headers */
/* Of receive buffers: one is left for what goes past their end. */
#define RX_PIECES (VIRTIO_SEGMENTS - 1)

struct buffer {
	uint16_t head, pieces;
	uint32_t bytes;
};

struct net {
	struct virtio_device virtio;
	int fd;
	bool is_tap;
	bool gone;        /* what is behind fd: the link is down for ever */
	bool set_up;      /* the tap, for the features of this driver */
	uint32_t watched; /* events of fd */

	/* Receive buffers that were taken, and wait for a frame, in the ring's order. */
	struct virtqueue *rx;
	unsigned buffers, pieces;
	uint32_t bytes, most_bytes; /* now, and at once since the reset */
	struct buffer buffer[QUEUE_SIZE];
	struct iovec rx_iov[VIRTIO_SEGMENTS];
	uint8_t beyond; /* a frame that reaches it is too long */

	/* The frame that waits for the tap. */
	struct virtqueue *tx;
	bool sending;
	struct virtio_chain frame;
	struct virtio_net_hdr_v1 header; /* checked: the guest can change its own at any time */
	struct iovec tx_iov[1 + VIRTIO_SEGMENTS];
	uint8_t tail[FRAME_MOST]; /* of a frame in more pieces than the kernel takes */
};

static void drop(struct net *net)
{
	virtio_count(&net->virtio.statistics.errors, 1);
}

/* ------------------------------------------------------------------ the back end */

static void watch(struct net *net, bool readable)
{
	uint32_t events = (readable ? EPOLLIN : 0) | (net->sending ? EPOLLOUT : 0);

	if (net->gone)
		events = 0;
	if (events != net->watched && !virtio_watch(&net->virtio, net->fd, events))
		net->watched = events;
}

static void link_down(struct net *net)
{
	uint16_t status = 0;

	if (net->gone)
		return;
	net->gone = true;
	watch(net, false);
	virtio_set_config(&net->virtio, offsetof(struct virtio_net_config, status), &status,
			  sizeof(status));
}

/* The tap must not give a driver frames that it cannot understand. */
static unsigned offloads(const struct virtio_device *device)
{
	unsigned flags = 0;

	if (virtio_has(device, VIRTIO_NET_F_GUEST_CSUM)) {
		flags |= TUN_F_CSUM;
		if (virtio_has(device, VIRTIO_NET_F_GUEST_TSO4))
			flags |= TUN_F_TSO4;
		if (virtio_has(device, VIRTIO_NET_F_GUEST_TSO6))
			flags |= TUN_F_TSO6;
	}
	return flags;
}

static void set_up_tap(struct net *net)
{
	if (net->set_up)
		return;
	net->set_up = true;
	if (net->is_tap && ioctl(net->fd, TUNSETOFFLOAD, offloads(&net->virtio)))
		link_down(net);
}

/* ------------------------------------------------------------------ receiving */

static bool merges(const struct net *net)
{
	return virtio_has(&net->virtio, VIRTIO_NET_F_MRG_RXBUF);
}

/* As virtqueue_pop(). */
static int take_buffer(struct net *net)
{
	struct virtio_chain chain;
	int result = virtqueue_pop(net->rx, &chain, net->rx_iov + net->pieces,
				   RX_PIECES - net->pieces);

	if (result == -ENOBUFS && !net->buffers)
		virtio_fail(&net->virtio, net->rx, "a receive buffer has too many pieces");
	if (result <= 0)
		return result;
	if (chain.readable || chain.writable_bytes < HEADER) {
		virtio_fail(&net->virtio, net->rx, "a receive buffer without room for the header");
		return -EPROTO;
	}
	net->buffer[net->buffers++] = (struct buffer){
		chain.head, chain.writable, chain.writable_bytes,
	};
	net->pieces += chain.writable;
	net->bytes += chain.writable_bytes;
	return result;
}

/*
 * Whether there is room for a frame. Its length is not known before it is read, and what does not
 * fit is lost. So with merged buffers there must be enough for the longest; but a driver that has
 * never given that much would wait for ever, as would one that has no place left here, and these
 * get what fits.
 */
static bool has_room(struct net *net)
{
	uint32_t enough = merges(net) ? HEADER + FRAME_MOST : 1;
	int result = 1;

	while (result > 0 && net->bytes < enough && net->buffers < QUEUE_SIZE)
		result = take_buffer(net);
	if (net->bytes > net->most_bytes)
		net->most_bytes = net->bytes;
	if (!net->virtio.live || !net->buffers)
		return false;
	return net->bytes >= enough || net->most_bytes < enough || result == -ENOBUFS ||
	       net->buffers == QUEUE_SIZE;
}

/* If there is none, the driver's notification brings us back. */
static bool wait_for_room(struct net *net)
{
	virtqueue_quiet(net->rx);
	while (!has_room(net)) {
		virtqueue_publish(net->rx);
		if (!virtqueue_listen(net->rx))
			return false;
		virtqueue_quiet(net->rx);
	}
	return true;
}

/* Into the buffers, `offset` bytes after their beginning; they are that long. */
static void put(struct net *net, uint32_t offset, const void *data, uint32_t size)
{
	const uint8_t *in = data;

	for (struct iovec *piece = net->rx_iov; size; piece++) {
		if (offset >= piece->iov_len) {
			offset -= piece->iov_len;
			continue;
		}
		for (; size && offset < piece->iov_len; size--)
			((uint8_t *)piece->iov_base)[offset++] = *in++;
		offset = 0;
	}
}

/* The first `count` buffers have been filled with `size` bytes. */
static void return_buffers(struct net *net, unsigned count, uint32_t size)
{
	unsigned pieces = 0;

	for (unsigned i = 0; i < count; i++) {
		const struct buffer *buffer = &net->buffer[i];
		struct virtio_chain chain = { .head = buffer->head };
		uint32_t written = size < buffer->bytes ? size : buffer->bytes;

		virtqueue_push(net->rx, &chain, written);
		size -= written;
		pieces += buffer->pieces;
		net->bytes -= buffer->bytes;
	}
	net->buffers -= count;
	net->pieces -= pieces;
	memmove(net->buffer, net->buffer + count, net->buffers * sizeof(*net->buffer));
	memmove(net->rx_iov, net->rx_iov + pieces, net->pieces * sizeof(*net->rx_iov));
}

static void deliver(struct net *net, uint32_t size)
{
	uint32_t room = 0;
	uint16_t count = 0;
	uint8_t no_flags = 0;

	/* Without merging there is but one buffer at a time. */
	while (room < size)
		room += net->buffer[count++].bytes;
	if (!virtio_has(&net->virtio, VIRTIO_NET_F_GUEST_CSUM))
		put(net, offsetof(struct virtio_net_hdr_v1, flags), &no_flags, sizeof(no_flags));
	put(net, offsetof(struct virtio_net_hdr_v1, num_buffers), &count, sizeof(count));
	return_buffers(net, count, size);
	virtio_count(&net->virtio.statistics.bytes_in, size - HEADER);
}

/* Nothing was read: a message without bytes, or the end of the socket? */
static bool has_ended(const struct net *net)
{
	struct pollfd state = { .fd = net->fd, .events = POLLRDHUP };

	return net->is_tap || poll(&state, 1, 0) < 0 ||
	       state.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL);
}

/* One frame into the buffers, to the driver or, if it is none, nowhere. False: there is none. */
static bool receive_frame(struct net *net)
{
	ssize_t size;

	net->rx_iov[net->pieces] = (struct iovec){ &net->beyond, 1 };
	do
		size = readv(net->fd, net->rx_iov, net->pieces + 1);
	while (size < 0 && errno == EINTR);
	if (size < 0 && errno == EAGAIN)
		return false;
	if (size < 0 || (!size && has_ended(net))) { /* EBADFD: the tap has been deleted */
		link_down(net);
		return false;
	}
	if ((size_t)size > net->bytes || (size_t)size < HEADER + FRAME_LEAST)
		drop(net);
	else
		deliver(net, size);
	return true;
}

static void receive(struct net *net)
{
	unsigned frames = 0;
	bool room;

	while ((room = wait_for_room(net)) && frames < PASS_FRAMES &&
	       !virtio_wanted(&net->virtio) && receive_frame(net))
		frames++;
	virtqueue_publish(net->rx);
	watch(net, room); /* comes back if there was more: epoll is level-triggered */
}

/* ------------------------------------------------------------------ sending */

/* What the driver may ask for, by what it has negotiated. That offsets and sizes agree with the
 * frame is the tap's to check. */
static bool check_header(struct net *net)
{
	const struct virtio_device *device = &net->virtio;
	struct virtio_net_hdr_v1 *header = &net->header;

	header->num_buffers = 0;
	header->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM; /* others are not to be looked at */
	if (header->flags && !virtio_has(device, VIRTIO_NET_F_CSUM))
		return false;
	switch (header->gso_type) {
	case VIRTIO_NET_HDR_GSO_NONE:
		return true;
	case VIRTIO_NET_HDR_GSO_TCPV4:
		return virtio_has(device, VIRTIO_NET_F_HOST_TSO4);
	case VIRTIO_NET_HDR_GSO_TCPV6:
		return virtio_has(device, VIRTIO_NET_F_HOST_TSO6);
	}
	return false;
}

static bool take_frame(struct net *net)
{
	if (net->sending)
		return true;
	if (virtqueue_pop(net->tx, &net->frame, net->tx_iov + 1, VIRTIO_SEGMENTS) <= 0)
		return false;
	net->sending = virtio_chain_read(&net->frame, &net->header, HEADER);
	if (!net->sending)
		virtio_fail(&net->virtio, net->tx, "a frame without header");
	return net->sending;
}

/* The kernel takes IOV_MAX pieces, the header's among them: the last ones become one. */
static void join_pieces(struct net *net)
{
	struct virtio_chain *frame = &net->frame;
	uint32_t size = 0;

	if (frame->readable < IOV_MAX)
		return;
	for (unsigned i = IOV_MAX - 2; i < frame->readable; i++) {
		memcpy(net->tail + size, frame->iov[i].iov_base, frame->iov[i].iov_len);
		size += frame->iov[i].iov_len;
	}
	frame->iov[IOV_MAX - 2] = (struct iovec){ net->tail, size };
	frame->readable = IOV_MAX - 1;
}

/* False: the tap has no room for it now. */
static bool write_frame(struct net *net)
{
	/* The header came off the chain, so the place before what is left is free. */
	struct iovec *iov = net->frame.iov - 1;
	ssize_t size;

	join_pieces(net);
	*iov = (struct iovec){ &net->header, HEADER };
	do
		size = writev(net->fd, iov, 1 + net->frame.readable);
	while (size < 0 && errno == EINTR);
	if (size < 0 && errno == EAGAIN)
		return false;
	if (size < 0)
		drop(net); /* the interface is down, or the header was wrong: as on a wire */
	else
		virtio_count(&net->virtio.statistics.bytes_out, size - HEADER);
	return true;
}

/* One frame, to the tap or, if it is none, nowhere. False: there is none, or it has to wait. */
static bool transmit_frame(struct net *net)
{
	if (!take_frame(net))
		return false;
	if (!check_header(net) || net->frame.readable_bytes < FRAME_LEAST ||
	    net->frame.readable_bytes > FRAME_MOST)
		drop(net);
	else if (!write_frame(net))
		return false;
	net->sending = false;
	virtqueue_push(net->tx, &net->frame, 0);
	return true;
}

static void transmit(struct net *net)
{
	unsigned frames = 0;

	do {
		virtqueue_quiet(net->tx);
		while (frames < PASS_FRAMES && !virtio_wanted(&net->virtio) && transmit_frame(net))
			frames++;
		virtqueue_publish(net->tx);
		if (frames == PASS_FRAMES)
			virtqueue_kick(net->tx); /* come back */
	} while (!net->sending && frames < PASS_FRAMES && virtqueue_listen(net->tx));
	watch(net, net->watched & EPOLLIN);
}

/* ------------------------------------------------------------------ life */

static void notify(struct virtio_device *device, struct virtqueue *queue)
{
	struct net *net = (struct net *)device;

	set_up_tap(net);
	if (queue == net->rx)
		receive(net);
	else if (!net->sending) /* else the tap calls us */
		transmit(net);
}

static void event(struct virtio_device *device, int fd, uint32_t events)
{
	struct net *net = (struct net *)device;

	(void)fd;
	if (!device->live) {
		watch(net, false);
		return;
	}
	set_up_tap(net);
	if (net->sending)
		transmit(net);
	if (events & ~EPOLLOUT)
		receive(net);
	else
		watch(net, net->watched & EPOLLIN); /* a frame may be gone by a reset */
	if (!(events & EPOLLIN) && events & (EPOLLERR | EPOLLHUP))
		link_down(net);
}

static int begin(struct virtio_device *device)
{
	((struct net *)device)->watched = 0;
	return 0;
}

static void forget_buffers(struct net *net)
{
	net->buffers = net->pieces = net->bytes = net->most_bytes = 0;
}

static void reset(struct virtio_device *device)
{
	struct net *net = (struct net *)device;

	forget_buffers(net);
	net->sending = net->set_up = false;
}

static void remapped(struct virtio_device *device)
{
	struct net *net = (struct net *)device;

	if (net->buffers)
		virtqueue_unpop(net->rx, net->buffers);
	forget_buffers(net);
}

static void stopped(struct virtio_device *device, struct virtqueue *queue)
{
	struct net *net = (struct net *)device;

	if (queue == net->rx)
		forget_buffers(net);
	else
		net->sending = false;
}

static void close_fd(struct virtio_device *device)
{
	struct net *net = (struct net *)device;

	close(net->fd);
	net->fd = -1;
}

static void describe(struct net *net, const uint8_t *mac)
{
	struct virtio_net_config config = { .status = VIRTIO_NET_S_LINK_UP };
	struct virtio_device *device = &net->virtio;

	device->features |= 1ull << VIRTIO_NET_F_MAC | 1ull << VIRTIO_NET_F_STATUS |
			    1ull << VIRTIO_NET_F_MRG_RXBUF;
	if (net->is_tap)
		device->features |= 1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM |
				    1ull << VIRTIO_NET_F_HOST_TSO4 | 1ull << VIRTIO_NET_F_HOST_TSO6 |
				    1ull << VIRTIO_NET_F_GUEST_TSO4 |
				    1ull << VIRTIO_NET_F_GUEST_TSO6;
	memcpy(config.mac, mac, sizeof(config.mac));
	device->config_size = offsetof(struct virtio_net_config, max_virtqueue_pairs);
	memcpy(device->config, &config, device->config_size);
}

/* fd: does not block, and becomes the device's, unless there is no memory for one (NULL). mac: six
 * bytes. */
struct virtio_device *shim_virtio_net_new(int fd, const uint8_t *mac)
{
	static const struct virtio_ops ops = {
		.name = "kvmpy-net", .notify = notify, .event = event, .begin = begin,
		.reset = reset, .stopped = stopped, .remapped = remapped, .close = close_fd,
	};
	struct net *net = calloc(1, sizeof(*net));

	if (!net)
		return NULL;
	virtio_init(&net->virtio, &ops, VIRTIO_ID_NET, 2, QUEUE_SIZE);
	net->fd = fd;
	net->is_tap = !ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
	net->rx = &net->virtio.queue[RX];
	net->tx = &net->virtio.queue[TX];
	describe(net, mac);
	return &net->virtio;
}
