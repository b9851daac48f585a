/*
 * What is measured of the host itself. No part of a run loop, and nothing that a guest reaches: a
 * module of its own (kvmpy._measure), so that what a hostile guest meets can be counted.
 *
 *   cpu.c       CPUID, the clock, a loop of known length
 *   hostcall.c  the host's own system calls, timed; the CPU's counter of core cycles
 *   hosttry.c   a few instructions tried outside of any guest
 */
#ifndef KVMPY_MEASURE_H
#define KVMPY_MEASURE_H

#include <stdbool.h>
#include <stdint.h>

/* Before what Python sees: native/declarations.py reads it from here. */
#define API

/* cpu.c, hostcall.c */
API void measure_cpuid(uint32_t function, uint32_t index, uint32_t *registers);
API void measure_spin(uint32_t rounds);
API uint64_t measure_tsc(void);
API uint32_t measure_spin_ticks(uint32_t rounds);
API void measure_host_calls(int64_t number, uint32_t records, uint32_t *ticks);
API int measure_count_guest(uint32_t type, uint64_t config);

/* hosttry.c */

/* What ended a try: a signal, and the exception behind it as the kernel passes it on. */
API struct measure_host_try {
	int32_t signal; /* 0: the process ended by itself */
	bool reported;  /* it came to its end; rax and rdx are what it left there */
	uint32_t vector;
	uint32_t error_code;
	uint64_t address; /* CR2 */
	uint64_t rax;
	uint64_t rdx;
};

API int measure_host_try(const void *code, uint32_t size, uint32_t entry, uint64_t operand,
			 const void *scratch, uint32_t scratch_size,
			 struct measure_host_try *result);

#endif
