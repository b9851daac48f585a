/* The host's own CPU. */
#include <cpuid.h>

#include "shim.h"

/* EAX, EBX, ECX, EDX of the CPUID leaf, as the CPU that runs this thread gives them. */
void shim_cpuid(uint32_t function, uint32_t index, uint32_t *registers)
{
	__cpuid_count(function, index, registers[0], registers[1], registers[2], registers[3]);
}
