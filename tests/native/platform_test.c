/*
 * The platform's devices under a guest that does anything, for sanitizers: random accesses of
 * every width, from two threads, with the clock's interrupt thread running.
 */
#define _GNU_SOURCE
#include "fake_kvm.h"

#define ACCESSES 200000
#define DEVICES 6

static struct shim_device *devices[DEVICES];
static const unsigned lengths[DEVICES] = { 1, 1, 6, 1, 1, 2 };

static uint32_t next(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static void one_access(struct shim_vcpu *by, uint32_t *state)
{
	static const unsigned sizes[] = { 1, 2, 4, 8 };
	unsigned which = next(state) % DEVICES, size = sizes[next(state) % 4];
	bool is_write = next(state) % 2;
	/* Exactly as long as the access: one byte more is the sanitizer's. */
	uint8_t *data = malloc(size);
	int stop;

	CHECK(data);
	for (unsigned i = 0; i < size; i++)
		data[i] = is_write ? next(state) >> 8 : 0xff;
	by->report.value = 0;
	stop = devices[which]->access(devices[which], by, next(state) % lengths[which], data, size,
				      is_write);
	CHECK(stop == SHIM_CONTINUE || (stop == SHIM_SYSTEM && is_write));
	if (stop == SHIM_SYSTEM)
		CHECK(by->report.value >= SHIM_RESET_I8042 &&
		      by->report.value <= SHIM_CRASH_LOADED);
	free(data);
}

static void *guest(void *by)
{
	uint32_t state = by == vcpu ? 1 : 0x9e3779b9;

	for (unsigned i = 0; i < ACCESSES; i++) {
		one_access(by, &state);
		if (i % 64 == 0)
			shim_pm_press_power_button((struct shim_pm *)devices[2]);
	}
	return NULL;
}

int main(void)
{
	static const struct step nothing[] = { { 0 } };
	struct shim_i8042 *i8042 = shim_i8042_new();
	struct shim_pm *pm = shim_pm_new();
	struct shim_rtc *rtc = shim_rtc_new();
	struct shim_vcpu another = { 0 };
	pthread_t thread;

	begin(nothing, ALL_SYNC);
	devices[0] = shim_i8042_data(i8042);
	devices[1] = shim_i8042_command(i8042);
	devices[2] = (struct shim_device *)pm;
	devices[3] = shim_reset_control_new();
	devices[4] = shim_pvpanic_new();
	devices[5] = (struct shim_device *)rtc;
	shim_pm_connect_line(pm, 3, 9);
	/* One line only: what the fake keeps of two would race. */
	CHECK_EQUAL(shim_rtc_connect(rtc, -1, 8, -1), 0);
	CHECK_EQUAL(pthread_create(&thread, NULL, guest, &another), 0);
	guest(vcpu);
	pthread_join(thread, NULL);
	CHECK(fake.irq_line[1]);
	/* A rise and a fall for each, but for the last. */
	CHECK(fake.irq_line[1] - fake.irq_line[0] <= 1);
	shim_i8042_free(i8042);
	shim_pm_free(pm);
	shim_device_free(devices[3]);
	shim_device_free(devices[4]);
	shim_rtc_free(rtc);
	end();
	puts("platform: ok");
	return 0;
}
