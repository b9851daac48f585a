/*
 * The virtio-mmio register file, version 2 (VIRTIO 1.2, "4.2 Virtio Over MMIO").
 *
 * Control registers answer to aligned 32-bit accesses, as the specification has drivers make them;
 * of any other width a write is ignored and a read gives zeros. Config space takes every width.
 */
#include <string.h>

#include "virtio.h"

#define MAGIC 0x74726976 /* "virt" */
#define VERSION 2
#define VENDOR 0x504d564b /* "KVMP" */

#define DRIVER_BITS                                                                            \
	(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK |    \
	 VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED)

/* ------------------------------------------------------------------ interrupts */

/* The cause first: the guest that takes the interrupt reads it. Both locks may be held, or none. */
void virtio_interrupt(struct virtio_device *device, uint32_t cause)
{
	atomic_fetch_or(&device->interrupt_status, cause);
	if (device->interrupt_fd < 0)
		return;
	virtio_count(&device->statistics.interrupts, 1); /* first: the guest may be done with it */
	virtio_signal(device->interrupt_fd);
}

static void config_changed(struct virtio_device *device)
{
	if (device->status & VIRTIO_CONFIG_S_DRIVER_OK)
		virtio_interrupt(device, VIRTIO_MMIO_INT_CONFIG);
}

void virtio_set_config(struct virtio_device *device, unsigned offset, const void *data,
		       unsigned size)
{
	pthread_mutex_lock(&device->registers);
	memcpy(device->config + offset, data, size);
	device->config_generation++;
	config_changed(device);
	pthread_mutex_unlock(&device->registers);
}

/* ------------------------------------------------------------------ status */

static void fail_locked(struct virtio_device *device, unsigned queue, const char *reason)
{
	device->live = false;
	if (device->status & VIRTIO_CONFIG_S_NEEDS_RESET)
		return;
	device->fault = reason;
	device->fault_queue = queue;
	device->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
	config_changed(device);
}

void virtio_fail(struct virtio_device *device, const struct virtqueue *queue, const char *reason)
{
	pthread_mutex_lock(&device->registers);
	fail_locked(device, queue->index, reason);
	pthread_mutex_unlock(&device->registers);
}

/* Both locks held. What is told about a fault stays until the next one: it is for the host. */
void virtio_reset(struct virtio_device *device)
{
	device->live = false;
	for (unsigned i = 0; i < device->queues; i++)
		virtqueue_reset(&device->queue[i]);
	if (device->ops->reset)
		device->ops->reset(device);
	device->status = 0;
	device->driver_features = 0;
	device->device_features_sel = device->driver_features_sel = device->queue_sel = 0;
	atomic_store(&device->interrupt_status, 0);
}

/* Without VERSION_1 this would be the legacy interface, which is not here. */
static bool features_acceptable(const struct virtio_device *device)
{
	return !(device->driver_features & ~device->features) &&
	       virtio_has(device, VIRTIO_F_VERSION_1);
}

/* Bits are set one after another and never cleared but by a reset (VIRTIO 1.2, "2.1 Device Status
 * Field"); a bit that comes before its turn is not taken. */
static void write_status(struct virtio_device *device, uint32_t value)
{
	uint32_t added = value & DRIVER_BITS & ~device->status;

	if (!value) {
		virtio_reset(device);
		return;
	}
	if ((added & VIRTIO_CONFIG_S_FEATURES_OK) && !features_acceptable(device))
		added &= ~VIRTIO_CONFIG_S_FEATURES_OK;
	device->status |= added & ~VIRTIO_CONFIG_S_DRIVER_OK;
	if (!(added & VIRTIO_CONFIG_S_DRIVER_OK) || !(device->status & VIRTIO_CONFIG_S_FEATURES_OK))
		return;
	device->status |= VIRTIO_CONFIG_S_DRIVER_OK;
	if (device->status & VIRTIO_CONFIG_S_NEEDS_RESET) {
		config_changed(device); /* it was too early to say so */
		return;
	}
	device->live = true;
	for (unsigned i = 0; i < device->queues; i++)
		virtqueue_kick(&device->queue[i]);
}

/* ------------------------------------------------------------------ queues */

static struct virtqueue *selected(struct virtio_device *device)
{
	return device->queue_sel < device->queues ? &device->queue[device->queue_sel] : NULL;
}

static void stop_queue(struct virtio_device *device, struct virtqueue *queue)
{
	virtqueue_stop(queue);
	if (device->ops->stopped)
		device->ops->stopped(device, queue);
}

static void write_queue_ready(struct virtio_device *device, uint32_t value)
{
	struct virtqueue *queue = selected(device);
	const char *problem;

	/* Features first: they say how the rings are read. */
	if (!queue || !(device->status & VIRTIO_CONFIG_S_FEATURES_OK) || value > 1)
		return;
	if (!value)
		stop_queue(device, queue);
	else if (!queue->ready && !virtqueue_start(queue, &problem))
		fail_locked(device, queue->index, problem);
	else if (device->live)
		virtqueue_kick(queue);
}

static void set_low(uint64_t *address, uint32_t value)
{
	*address = (*address & ~(uint64_t)UINT32_MAX) | value;
}

static void set_high(uint64_t *address, uint32_t value)
{
	*address = (uint64_t)value << 32 | (uint32_t)*address;
}

/* Fixed while the queue is in use ("4.2.2.2 Driver Requirements: MMIO Device Register Layout"). */
static void write_queue(struct virtio_device *device, unsigned offset, uint32_t value)
{
	struct virtqueue *queue = selected(device);

	if (!queue || queue->ready)
		return;
	switch (offset) {
	case VIRTIO_MMIO_QUEUE_NUM:
		queue->size = value;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
		set_low(&queue->desc_gpa, value);
		break;
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_high(&queue->desc_gpa, value);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
		set_low(&queue->avail_gpa, value);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		set_high(&queue->avail_gpa, value);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
		set_low(&queue->used_gpa, value);
		break;
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		set_high(&queue->used_gpa, value);
		break;
	}
}

/* ------------------------------------------------------------------ registers */

static void write_driver_features(struct virtio_device *device, uint32_t value)
{
	if (device->status & VIRTIO_CONFIG_S_FEATURES_OK)
		return; /* negotiated */
	if (device->driver_features_sel == 0)
		set_low(&device->driver_features, value);
	else if (device->driver_features_sel == 1)
		set_high(&device->driver_features, value);
	/* Bits from 64 on are none of ours: a driver that writes zeros there is right. */
}

static void write_register(struct virtio_device *device, unsigned offset, uint32_t value)
{
	switch (offset) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		device->device_features_sel = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		write_driver_features(device, value);
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		device->driver_features_sel = value;
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		device->queue_sel = value;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		write_queue_ready(device, value);
		break;
	case VIRTIO_MMIO_QUEUE_NOTIFY: /* without an ioeventfd */
		if (value < device->queues)
			virtqueue_kick(&device->queue[value]);
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		atomic_fetch_and(&device->interrupt_status, ~value);
		break;
	case VIRTIO_MMIO_STATUS:
		write_status(device, value);
		break;
	default:
		write_queue(device, offset, value);
	}
}

static uint32_t read_queue(struct virtio_device *device, unsigned offset)
{
	struct virtqueue *queue = selected(device);

	if (!queue)
		return 0; /* QueueNumMax 0: there is no such queue */
	return offset == VIRTIO_MMIO_QUEUE_NUM_MAX ? queue->size_max : queue->ready;
}

static uint32_t read_register(struct virtio_device *device, unsigned offset)
{
	uint32_t sel = device->device_features_sel;

	switch (offset) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return MAGIC;
	case VIRTIO_MMIO_VERSION:
		return VERSION;
	case VIRTIO_MMIO_DEVICE_ID:
		return device->id;
	case VIRTIO_MMIO_VENDOR_ID:
		return VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return sel < 2 ? device->features >> (32 * sel) : 0;
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
	case VIRTIO_MMIO_QUEUE_READY:
		return read_queue(device, offset);
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return atomic_load(&device->interrupt_status);
	case VIRTIO_MMIO_STATUS:
		return device->status;
	case VIRTIO_MMIO_SHM_LEN_LOW: /* no shared memory region: all ones */
	case VIRTIO_MMIO_SHM_LEN_HIGH:
	case VIRTIO_MMIO_SHM_BASE_LOW:
	case VIRTIO_MMIO_SHM_BASE_HIGH:
		return UINT32_MAX;
	case VIRTIO_MMIO_CONFIG_GENERATION:
		return device->config_generation;
	}
	return 0;
}

static void access_config(struct virtio_device *device, unsigned offset, uint8_t *data,
			  unsigned size, bool is_write)
{
	bool inside = offset < device->config_size && size <= device->config_size - offset;

	if (!is_write) /* what is past its end reads as zero */
		memcpy(data, device->config + offset,
		       size <= VIRTIO_CONFIG_SIZE - offset ? size : VIRTIO_CONFIG_SIZE - offset);
	else if (inside && device->ops->write_config)
		device->ops->write_config(device, offset, data, size);
}

static void access_locked(struct virtio_device *device, unsigned offset, uint8_t *data,
			  unsigned size, bool is_write)
{
	uint32_t value;

	if (offset >= VIRTIO_MMIO_CONFIG) {
		access_config(device, offset - VIRTIO_MMIO_CONFIG, data, size, is_write);
	} else if (size != sizeof(value) || offset % sizeof(value)) {
		return;
	} else if (is_write) {
		memcpy(&value, data, sizeof(value));
		write_register(device, offset, value);
	} else {
		value = read_register(device, offset);
		memcpy(data, &value, sizeof(value));
	}
}

/* The registers whose writes change what the worker works on. */
static bool needs_work_lock(const struct virtio_device *device, uint64_t offset)
{
	return offset == VIRTIO_MMIO_STATUS || offset == VIRTIO_MMIO_QUEUE_READY ||
	       (offset >= VIRTIO_MMIO_CONFIG && device->ops->write_config);
}

int virtio_mmio_access(struct shim_device *shim, struct shim_vcpu *vcpu, uint64_t offset,
		       uint8_t *data, unsigned size, bool is_write)
{
	struct virtio_device *device = (struct virtio_device *)shim;
	bool exclusive = is_write && needs_work_lock(device, offset);

	(void)vcpu;
	virtio_count(&device->statistics.accesses, 1);
	if (!is_write)
		memset(data, 0, size);
	if (offset >= VIRTIO_MMIO_LENGTH)
		return SHIM_CONTINUE;
	if (exclusive)
		virtio_lock_work(device);
	pthread_mutex_lock(&device->registers);
	access_locked(device, offset, data, size, is_write);
	pthread_mutex_unlock(&device->registers);
	if (exclusive)
		virtio_unlock_work(device);
	return SHIM_CONTINUE;
}
