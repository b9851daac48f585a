/* What the benchmarks need of the host: its own system calls, timed as bench/syscall.py times a
 * guest's, and the CPU's counter of core cycles. */
#include <errno.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "measure.h"


static inline uint32_t stamp_begin(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return low;
}

static inline uint32_t stamp_end(void)
{
	uint32_t low, high, aux;

	__asm__ volatile("rdtscp; lfence" : "=a"(low), "=d"(high), "=c"(aux) : : "memory");
	return low;
}

#define CALLS(count)                                                                               \
	__asm__ volatile(".rept " #count "; mov %0, %%rax; syscall; .endr"                         \
			 :                                                                         \
			 : "r"(number)                                                             \
			 : "rax", "rcx", "r11", "memory")

/* `records` pairs to `ticks`: TSC ticks of 16 system calls, and of 32. `number`: of a call
 * without arguments. */
void measure_host_calls(int64_t number, uint32_t records, uint32_t *ticks)
{
	for (uint32_t i = 0; i < records; i++) {
		uint32_t start = stamp_begin();

		CALLS(16);
		ticks[2 * i] = stamp_end() - start;
		start = stamp_begin();
		CALLS(32);
		ticks[2 * i + 1] = stamp_end() - start;
	}
}

/* Ticks of `rounds` of measure_spin()'s loop, 18 instructions each. */
uint32_t measure_spin_ticks(uint32_t rounds)
{
	uint32_t start = stamp_begin();

	measure_spin(rounds);
	return stamp_end() - start;
}

/* A descriptor that counts `config` of `type` (perf_event_open(2)) for this thread while it runs a
 * guest; read() gives the count, or nothing if the CPU had no counter free. -errno if there is
 * none to be had. */
int measure_count_guest(uint32_t type, uint64_t config)
{
	struct perf_event_attr attr;
	long fd;

	memset(&attr, 0, sizeof(attr));
	attr.size = sizeof(attr);
	attr.type = type;
	attr.config = config;
	attr.pinned = 1; /* all of the time or not at all: a share would have to be guessed */
	attr.exclude_host = 1;
	attr.exclude_hv = 1;
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	return fd < 0 ? -errno : (int)fd;
}
