/*
 * The one-port devices: debug console (0xE9), debug exit (0xF4), POST codes (0x80).
 */
#include <stdlib.h>

#include "shim.h"

/* Bochs's debug console: a write prints, a read says that the console is there. */
struct debugcon {
	struct shim_device device;
	struct shim_sink *sink;
};

static int debugcon_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
			   uint8_t *data, unsigned size, bool is_write)
{
	struct debugcon *console = (struct debugcon *)device;
	int stop = SHIM_CONTINUE;

	(void)offset;
	if (!is_write) {
		data[0] = 0xe9;
		return SHIM_CONTINUE;
	}
	for (unsigned i = 0; i < size; i++) {
		int result = shim_sink_put(console->sink, vcpu, data[i]);

		if (result != SHIM_CONTINUE)
			stop = result;
	}
	return stop;
}

static int debugcon_flush(struct shim_device *device)
{
	return shim_sink_flush(((struct debugcon *)device)->sink);
}

struct shim_device *shim_debugcon_new(struct shim_sink *sink)
{
	struct debugcon *console = calloc(1, sizeof(*console));

	if (!console)
		return NULL;
	console->device.access = debugcon_access;
	console->device.flush = debugcon_flush;
	console->sink = sink;
	return &console->device;
}

/* The value written is the guest's exit status; a read leaves all ones. */
static int debug_exit_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
			     uint8_t *data, unsigned size, bool is_write)
{
	(void)device, (void)offset;
	if (!is_write)
		return SHIM_CONTINUE;
	vcpu->report.value = 0;
	for (unsigned i = 0; i < size; i++)
		vcpu->report.value |= (uint64_t)data[i] << (8 * i);
	return SHIM_DEBUG_EXIT;
}

struct shim_device *shim_debug_exit_new(void)
{
	struct shim_device *device = calloc(1, sizeof(*device));

	if (device)
		device->access = debug_exit_access;
	return device;
}

static int post_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
		       uint8_t *data, unsigned size, bool is_write)
{
	struct shim_post *post = (struct shim_post *)device;

	(void)vcpu, (void)offset, (void)size;
	if (is_write) {
		post->last = data[0];
		__atomic_fetch_add(&post->writes, 1, __ATOMIC_RELAXED);
	} else {
		data[0] = post->last;
	}
	return SHIM_CONTINUE;
}

struct shim_post *shim_post_new(void)
{
	struct shim_post *post = calloc(1, sizeof(*post));

	if (post)
		post->device.access = post_access;
	return post;
}

void shim_device_free(struct shim_device *device)
{
	free(device);
}
