/*
 * Real-time clock and CMOS memory (Motorola MC146818A data sheet).
 *
 * The time is the host's, in UTC, plus an offset that the guest makes by setting it. Registers are
 * computed when they are read, so a clock that nobody reads costs nothing; the interrupts have a
 * thread, which sleeps until the next one that is enabled. Updates and alarms follow the host's time
 * of day, which can be set; the periodic interrupt does not.
 */
#define _GNU_SOURCE /* pthread_cond_clockwait */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "shim.h"

enum {
	SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH,
	YEAR, REG_A, REG_B, REG_C, REG_D,
	EQUIPMENT = 0x14, BASE_MEMORY = 0x15, EXTENDED_MEMORY = 0x17, EXTENDED_MEMORY_FOUND = 0x30,
	CENTURY = 0x32, MEMORY_ABOVE_16M = 0x34, MEMORY_ABOVE_4G = 0x5b,
};

#define A_UPDATE_IN_PROGRESS 0x80
#define A_RATE 0x0f
#define A_DEFAULT 0x26 /* 32768 Hz crystal, 1024 Hz */
#define B_SET 0x80
#define B_UPDATE 0x10
#define B_BINARY 0x04
#define B_24_HOURS 0x02
#define FLAG_PERIODIC 0x40 /* of C; of B, their enables */
#define FLAG_ALARM 0x20
#define FLAG_UPDATE 0x10
#define FLAGS 0x70
#define C_REQUEST 0x80
#define D_VALID 0x80
#define ALARM_ANY 0xc0 /* from here on, an alarm register matches everything */

#define NS_PER_SECOND 1000000000ll
#define UPDATE_NS 2228000 /* UIP is set 244 us before an update of 1984 us */
#define DAY_SECONDS 86400
#define INDEX_MASK 0x7f /* bit 7 masks the NMI */

struct shim_rtc {
	struct shim_device device;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t thread;
	bool ending;
	bool connected; /* there is a thread */
	struct shim_at_fork at_fork;
	struct shim_line line;
	uint8_t index, cmos[128];
	int64_t offset; /* seconds, guest's time less the host's */
	int64_t seen;   /* host's time in ns up to which the flags in C are right */
	int64_t ticked; /* the same by CLOCK_MONOTONIC, for the periodic one */
};

/* ns since 1970. Of the guest's time only seconds are computed: it may set years that do not fit
 * in 64 bits of ns. */
static int64_t host_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

static int64_t guest_second(const struct shim_rtc *rtc, int64_t host_ns)
{
	return host_ns / NS_PER_SECOND + rtc->offset;
}

/* ------------------------------------------------------------------ formats */

static uint8_t encode(const struct shim_rtc *rtc, unsigned value)
{
	return rtc->cmos[REG_B] & B_BINARY ? value : value / 10 << 4 | value % 10;
}

static unsigned decode(const struct shim_rtc *rtc, uint8_t value)
{
	return rtc->cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 0xf);
}

static uint8_t encode_hours(const struct shim_rtc *rtc, unsigned hours)
{
	if (rtc->cmos[REG_B] & B_24_HOURS)
		return encode(rtc, hours);
	return encode(rtc, hours % 12 ? hours % 12 : 12) | (hours >= 12 ? 0x80 : 0);
}

static unsigned decode_hours(const struct shim_rtc *rtc, uint8_t value)
{
	if (rtc->cmos[REG_B] & B_24_HOURS)
		return decode(rtc, value);
	return decode(rtc, value & 0x7f) % 12 + (value & 0x80 ? 12 : 0);
}

/* ------------------------------------------------------------------ time */

static bool is_time(unsigned index)
{
	return index == CENTURY ||
	       (index <= YEAR && index != SECONDS_ALARM && index != MINUTES_ALARM &&
		index != HOURS_ALARM);
}

static void load_time(struct shim_rtc *rtc)
{
	time_t now = guest_second(rtc, host_now());
	unsigned year;
	struct tm tm;

	gmtime_r(&now, &tm);
	year = tm.tm_year + 1900;
	rtc->cmos[SECONDS] = encode(rtc, tm.tm_sec);
	rtc->cmos[MINUTES] = encode(rtc, tm.tm_min);
	rtc->cmos[HOURS] = encode_hours(rtc, tm.tm_hour);
	rtc->cmos[WEEKDAY] = encode(rtc, tm.tm_wday + 1);
	rtc->cmos[DAY] = encode(rtc, tm.tm_mday);
	rtc->cmos[MONTH] = encode(rtc, tm.tm_mon + 1);
	rtc->cmos[YEAR] = encode(rtc, year % 100);
	rtc->cmos[CENTURY] = encode(rtc, year / 100 % 100);
}

/* What the guest wrote may be no date at all: timegm() makes one of it. */
static void store_time(struct shim_rtc *rtc)
{
	struct tm tm = {
		.tm_sec = decode(rtc, rtc->cmos[SECONDS]),
		.tm_min = decode(rtc, rtc->cmos[MINUTES]),
		.tm_hour = decode_hours(rtc, rtc->cmos[HOURS]),
		.tm_mday = decode(rtc, rtc->cmos[DAY]),
		.tm_mon = (int)decode(rtc, rtc->cmos[MONTH]) - 1,
		.tm_year = (int)(decode(rtc, rtc->cmos[CENTURY]) * 100 +
				 decode(rtc, rtc->cmos[YEAR])) - 1900,
	};

	rtc->seen = host_now();
	rtc->offset = timegm(&tm) - rtc->seen / NS_PER_SECOND;
}

/* ------------------------------------------------------------------ events */

static bool alarm_field_matches(uint8_t alarm, uint8_t now)
{
	return alarm >= ALARM_ANY || alarm == now;
}

static bool second_matches(const struct shim_rtc *rtc, unsigned second)
{
	return alarm_field_matches(rtc->cmos[SECONDS_ALARM], encode(rtc, second));
}

static bool minute_matches(const struct shim_rtc *rtc, unsigned minute)
{
	return alarm_field_matches(rtc->cmos[MINUTES_ALARM], encode(rtc, minute));
}

static bool hour_matches(const struct shim_rtc *rtc, unsigned hour)
{
	return alarm_field_matches(rtc->cmos[HOURS_ALARM], encode_hours(rtc, hour));
}

static bool any_matches(const struct shim_rtc *rtc,
			bool (*matches)(const struct shim_rtc *rtc, unsigned value))
{
	for (unsigned value = 0; value < 60; value++)
		if (matches(rtc, value))
			return true;
	return false;
}

/* In how many seconds after `second` the alarm goes off: 1 to a day's, 0 for never. Some two hundred
 * steps at most: an hour or a minute that does not match is passed at once. */
static int64_t alarm_in(const struct shim_rtc *rtc, int64_t second)
{
	unsigned start = ((second % DAY_SECONDS) + DAY_SECONDS) % DAY_SECONDS;

	if (!any_matches(rtc, second_matches) || !any_matches(rtc, minute_matches))
		return 0;
	for (unsigned t = start + 1; t <= start + DAY_SECONDS;) {
		if (!hour_matches(rtc, t / 3600 % 24))
			t = (t / 3600 + 1) * 3600;
		else if (!minute_matches(rtc, t / 60 % 60))
			t = (t / 60 + 1) * 60;
		else if (!second_matches(rtc, t % 60))
			t++;
		else
			return t - start;
	}
	return 0;
}

/* ns, 0: off. The two fastest rates are slower than they look with a 32768 Hz crystal. */
static int64_t period(const struct shim_rtc *rtc)
{
	unsigned rate = rtc->cmos[REG_A] & A_RATE;

	if (!rate)
		return 0;
	return NS_PER_SECOND * (1 << ((rate <= 2 ? rate + 7 : rate) - 1)) / 32768;
}

/* Sets the flags for what has happened since the last look, and the interrupt line by them. */
static void account(struct shim_rtc *rtc)
{
	int64_t now = host_now(), running = shim_now(), tick = period(rtc);
	int64_t before = guest_second(rtc, rtc->seen), second = guest_second(rtc, now);
	uint8_t flags = rtc->cmos[REG_C];

	if (tick && running / tick > rtc->ticked / tick)
		flags |= FLAG_PERIODIC;
	if (second > before && !(rtc->cmos[REG_B] & B_SET)) {
		int64_t wait = flags & FLAG_ALARM ? 0 : alarm_in(rtc, before);

		flags |= FLAG_UPDATE;
		if (wait && before + wait <= second)
			flags |= FLAG_ALARM;
	}
	rtc->seen = now;
	rtc->ticked = running;
	flags = (flags & FLAGS) | (flags & rtc->cmos[REG_B] & FLAGS ? C_REQUEST : 0);
	rtc->cmos[REG_C] = flags;
	shim_line_set(&rtc->line, flags & C_REQUEST);
}

/* When the next enabled interrupt is due, in ns of *clock; 0: none. */
static int64_t next_event(const struct shim_rtc *rtc, clockid_t *clock)
{
	uint8_t wanted = rtc->cmos[REG_B] & FLAGS;
	int64_t tick = wanted & FLAG_PERIODIC ? period(rtc) : 0, wait = 0;
	int64_t next = tick ? (rtc->ticked / tick + 1) * tick : 0, then;

	*clock = CLOCK_MONOTONIC;
	if (rtc->cmos[REG_C] & C_REQUEST)
		return 0; /* the line is up until C is read */
	if (rtc->cmos[REG_B] & B_SET)
		return next;
	if (wanted & FLAG_UPDATE)
		wait = 1;
	else if (wanted & FLAG_ALARM)
		wait = alarm_in(rtc, guest_second(rtc, rtc->seen));
	if (!wait)
		return next;
	then = (rtc->seen / NS_PER_SECOND + wait) * NS_PER_SECOND;
	if (next && next - rtc->ticked <= then - rtc->seen)
		return next;
	*clock = CLOCK_REALTIME;
	return then;
}

static void *interrupts(void *argument)
{
	struct shim_rtc *rtc = argument;

	pthread_mutex_lock(&rtc->lock);
	while (!rtc->ending) {
		clockid_t clock;
		int64_t next;

		account(rtc);
		next = next_event(rtc, &clock);
		if (!next) {
			pthread_cond_wait(&rtc->changed, &rtc->lock);
		} else {
			struct timespec until = { next / NS_PER_SECOND, next % NS_PER_SECOND };

			pthread_cond_clockwait(&rtc->changed, &rtc->lock, clock, &until);
		}
	}
	pthread_mutex_unlock(&rtc->lock);
	return NULL;
}

/* ------------------------------------------------------------------ registers */

static uint8_t read_register(struct shim_rtc *rtc, unsigned index)
{
	uint8_t value;

	switch (index) {
	case REG_A:
		if (!(rtc->cmos[REG_B] & B_SET) &&
		    host_now() % NS_PER_SECOND >= NS_PER_SECOND - UPDATE_NS)
			return rtc->cmos[REG_A] | A_UPDATE_IN_PROGRESS;
		break;
	case REG_C:
		account(rtc);
		value = rtc->cmos[REG_C];
		rtc->cmos[REG_C] = 0;
		shim_line_set(&rtc->line, false);
		return value;
	default:
		if (is_time(index) && !(rtc->cmos[REG_B] & B_SET))
			load_time(rtc);
	}
	return rtc->cmos[index];
}

/* SET holds the time registers still, and off the clock, while they are written. */
static void set_b(struct shim_rtc *rtc, uint8_t value)
{
	uint8_t before = rtc->cmos[REG_B];

	if (~before & value & B_SET)
		load_time(rtc);
	if (value & B_SET)
		value &= ~B_UPDATE;
	account(rtc); /* with the old enables: no interrupt for what was not wanted then */
	rtc->cmos[REG_B] = value;
	if (before & ~value & B_SET)
		store_time(rtc);
}

static void write_register(struct shim_rtc *rtc, unsigned index, uint8_t value)
{
	switch (index) {
	case REG_A:
		account(rtc);
		rtc->cmos[REG_A] = value & ~A_UPDATE_IN_PROGRESS;
		break;
	case REG_B:
		set_b(rtc, value);
		break;
	case REG_C:
	case REG_D:
		return;
	default:
		if (!is_time(index)) {
			account(rtc); /* an alarm as it was */
			rtc->cmos[index] = value;
		} else if (rtc->cmos[REG_B] & B_SET) {
			rtc->cmos[index] = value;
		} else {
			load_time(rtc);
			rtc->cmos[index] = value;
			store_time(rtc);
		}
	}
	account(rtc);
}

static int rtc_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
		      uint8_t *data, unsigned size, bool is_write)
{
	struct shim_rtc *rtc = (struct shim_rtc *)device;

	(void)vcpu;
	pthread_mutex_lock(&rtc->lock);
	for (unsigned i = 0; i < size && offset + i < 2; i++) {
		if (offset + i == 0) {
			if (is_write)
				rtc->index = data[i] & INDEX_MASK;
			else
				data[i] = rtc->index;
		} else if (is_write) {
			write_register(rtc, rtc->index, data[i]);
		} else {
			data[i] = read_register(rtc, rtc->index);
		}
	}
	/* A look at the time changes nothing for it. */
	if (is_write || rtc->index == REG_C)
		pthread_cond_signal(&rtc->changed);
	pthread_mutex_unlock(&rtc->lock);
	return SHIM_CONTINUE;
}

/* ------------------------------------------------------------------ life */

static void in_child(struct shim_at_fork *at_fork)
{
	struct shim_rtc *rtc = SHIM_OF_FORK(struct shim_rtc, at_fork);

	shim_line_at_fork(&rtc->line, &rtc->lock);
	pthread_cond_init(&rtc->changed, NULL);
	rtc->connected = false; /* there is no thread */
}

struct shim_rtc *shim_rtc_new(void)
{
	struct shim_rtc *rtc = calloc(1, sizeof(*rtc));

	if (!rtc)
		return NULL;
	rtc->device.access = rtc_access;
	rtc->cmos[REG_A] = A_DEFAULT;
	rtc->cmos[REG_B] = B_24_HOURS;
	rtc->cmos[REG_D] = D_VALID;
	rtc->cmos[EQUIPMENT] = 0x02; /* a floating-point unit; no floppy, no video */
	shim_line_init(&rtc->line);
	rtc->seen = host_now();
	rtc->ticked = shim_now();
	pthread_mutex_init(&rtc->lock, NULL);
	pthread_cond_init(&rtc->changed, NULL);
	shim_at_fork(&rtc->at_fork, in_child);
	return rtc;
}

static uint64_t at_most(uint64_t value, uint64_t limit)
{
	return value < limit ? value : limit;
}

static uint64_t above(uint64_t value, uint64_t start)
{
	return value > start ? value - start : 0;
}

static void put(struct shim_rtc *rtc, unsigned index, unsigned bytes, uint64_t value)
{
	for (unsigned i = 0; i < bytes; i++)
		rtc->cmos[index + i] = value >> (8 * i);
}

/* Bytes of RAM below 4 GiB and above, where firmware and small kernels look for them. */
void shim_rtc_set_memory(struct shim_rtc *rtc, uint64_t low, uint64_t high)
{
	uint64_t extended = at_most(above(low, 1 << 20) >> 10, 0xffff);

	pthread_mutex_lock(&rtc->lock);
	put(rtc, BASE_MEMORY, 2, at_most(low >> 10, 640));
	put(rtc, EXTENDED_MEMORY, 2, extended);
	put(rtc, EXTENDED_MEMORY_FOUND, 2, extended);
	put(rtc, MEMORY_ABOVE_16M, 2, at_most(above(low, 16 << 20) >> 16, 0xffff));
	put(rtc, MEMORY_ABOVE_4G, 3, at_most(high >> 16, 0xffffff));
	pthread_mutex_unlock(&rtc->lock);
}

int64_t shim_rtc_offset(struct shim_rtc *rtc)
{
	int64_t offset;

	pthread_mutex_lock(&rtc->lock);
	offset = rtc->offset;
	pthread_mutex_unlock(&rtc->lock);
	return offset;
}

/* As shim_uart_assert(). */
void shim_rtc_assert(struct shim_rtc *rtc)
{
	pthread_mutex_lock(&rtc->lock);
	shim_line_assert(&rtc->line);
	pthread_mutex_unlock(&rtc->lock);
}

/* No interrupt any longer. Not while another thread connects it. */
void shim_rtc_disconnect(struct shim_rtc *rtc)
{
	if (!rtc->connected)
		return;
	pthread_mutex_lock(&rtc->lock);
	rtc->ending = true;
	shim_line_disconnect(&rtc->line);
	pthread_cond_signal(&rtc->changed);
	pthread_mutex_unlock(&rtc->lock);
	pthread_join(rtc->thread, NULL);
	rtc->connected = false;
	rtc->ending = false;
}

/* Signals are for vCPU threads and Python. */
static int start_thread(struct shim_rtc *rtc)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&rtc->thread, NULL, interrupts, rtc);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	rtc->connected = !error;
	return -error;
}

static int connect_to(struct shim_rtc *rtc, const struct shim_line *to)
{
	int error;

	shim_rtc_disconnect(rtc);
	pthread_mutex_lock(&rtc->lock);
	error = shim_line_connect(&rtc->line, to);
	pthread_mutex_unlock(&rtc->lock);
	return error ? error : start_thread(rtc);
}

/* The interrupt as a line of the in-kernel irqchip (eventfd -1) or as an eventfd (vm_fd -1).
 * 0 or -errno: it takes a thread. */
int shim_rtc_connect(struct shim_rtc *rtc, int vm_fd, uint32_t gsi, int eventfd)
{
	return connect_to(rtc, &(struct shim_line){ .vm_fd = vm_fd, .eventfd = eventfd,
						    .gsi = gsi });
}

/* The interrupt as a pin of an I/O APIC of ours. 0 or -errno. */
int shim_rtc_connect_ioapic(struct shim_rtc *rtc, struct shim_ioapic *ioapic, uint32_t pin)
{
	return connect_to(rtc, &(struct shim_line){ .vm_fd = -1, .eventfd = -1, .ioapic = ioapic,
						    .gsi = pin });
}

void shim_rtc_free(struct shim_rtc *rtc)
{
	if (!rtc)
		return;
	shim_rtc_disconnect(rtc);
	shim_not_at_fork(&rtc->at_fork);
	pthread_cond_destroy(&rtc->changed);
	pthread_mutex_destroy(&rtc->lock);
	free(rtc);
}
