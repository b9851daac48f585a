/*
 * The clock's events under a scripted time of day: alarms against a search second by second, the
 * periodic interrupt while the time of day is set back and forth.
 */
#define _GNU_SOURCE
#include <time.h>

#include "check.h"
#include "shim.h"

#define DAY 86400

enum { SECONDS_ALARM = 1, MINUTES_ALARM = 3, HOURS_ALARM = 5, A = 0x0a, B = 0x0b, C = 0x0c };

static struct timespec of_day = { .tv_sec = 1000000000 }, since_boot = { .tv_sec = 1000 };

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
	if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC)
		return __real_clock_gettime(clock, now);
	*now = clock == CLOCK_REALTIME ? of_day : since_boot;
	return 0;
}

static struct shim_device *clock_device;

static void put(uint8_t index, uint8_t value)
{
	CHECK_EQUAL(clock_device->access(clock_device, NULL, 0, &index, 1, true), SHIM_CONTINUE);
	CHECK_EQUAL(clock_device->access(clock_device, NULL, 1, &value, 1, true), SHIM_CONTINUE);
}

static uint8_t get(uint8_t index)
{
	uint8_t value = 0xff;

	CHECK_EQUAL(clock_device->access(clock_device, NULL, 0, &index, 1, true), SHIM_CONTINUE);
	CHECK_EQUAL(clock_device->access(clock_device, NULL, 1, &value, 1, false), SHIM_CONTINUE);
	return value;
}

static bool field(int alarm, long now)
{
	return alarm < 0 || alarm == now;
}

/* Alarm fields: -1 for any, 60 and above for a value that no clock shows. */
static long search(long start, const int *alarm)
{
	for (long wait = 1; wait <= DAY; wait++) {
		long t = (start + wait) % DAY;

		if (field(alarm[0], t / 3600) && field(alarm[1], t / 60 % 60) &&
		    field(alarm[2], t % 60))
			return wait;
	}
	return 0;
}

static uint32_t state = 12345;

static uint32_t next(void)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static int pick(unsigned values)
{
	switch (next() % 8) {
	case 0:
	case 1:
		return -1;
	case 2:
		return 70; /* never */
	default:
		return next() % values;
	}
}

static void alarms(void)
{
	put(B, 0x06); /* binary, 24 hours */
	for (unsigned round = 0; round < 400; round++) {
		int alarm[3] = { pick(24), pick(60), pick(60) };
		long wait;

		of_day.tv_sec = 1000000000 + next() % (4 * DAY);
		wait = search(of_day.tv_sec % DAY, alarm);
		put(HOURS_ALARM, alarm[0] < 0 ? 0xff : alarm[0]);
		put(MINUTES_ALARM, alarm[1] < 0 ? 0xc0 : alarm[1]);
		put(SECONDS_ALARM, alarm[2] < 0 ? 0xe5 : alarm[2]);
		get(C);
		of_day.tv_sec += (wait ? wait : DAY) - 1;
		CHECK_EQUAL(get(C) & 0x20, 0);
		of_day.tv_sec++;
		CHECK_EQUAL(get(C) & 0x20, wait ? 0x20 : 0);
	}
}

/* The time of day is set: no tick more, none less. */
static void periodic(void)
{
	static const long steps[] = { 0, -100000, 100000, 3600, -3600, 1 };

	put(A, 0x2f); /* 2 Hz */
	put(B, 0x42);
	get(C);
	for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		of_day.tv_sec += steps[i];
		CHECK_EQUAL(get(C) & 0x40, 0);
		since_boot.tv_nsec += 400000000;
		since_boot.tv_nsec %= 500000000;
		since_boot.tv_sec++;
		of_day.tv_sec += 1;
		CHECK_EQUAL(get(C) & 0x40, 0x40);
	}
}

int main(void)
{
	struct shim_rtc *rtc = shim_rtc_new();

	clock_device = (struct shim_device *)rtc;
	alarms();
	periodic();
	shim_rtc_free(rtc);
	puts("rtc: ok");
	return 0;
}
