/* The host's own CPU. */
#include <cpuid.h>

#include "measure.h"

/* EAX, EBX, ECX, EDX of the CPUID leaf, as the CPU that runs this thread gives them. */
void measure_cpuid(uint32_t function, uint32_t index, uint32_t *registers)
{
	__cpuid_count(function, index, registers[0], registers[1], registers[2], registers[3]);
}

/* The loop that kvmpy/probe/modes.py times in guests, here: 18 instructions a round. */
void measure_spin(uint32_t rounds)
{
	uint32_t sum = 0;

	if (!rounds)
		return;
	__asm__ volatile("1: .rept 16; add %[one], %[sum]; .endr; dec %[rounds]; jnz 1b"
			 : [sum] "+r"(sum), [rounds] "+r"(rounds)
			 : [one] "r"(1));
}

/* The clock that a guest whose TSC offset is 0 reads. */
uint64_t measure_tsc(void)
{
	return __builtin_ia32_rdtsc();
}
