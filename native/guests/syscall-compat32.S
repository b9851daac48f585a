// syscall-compat32.S - system calls of 32-bit code under long mode: ring 3 in
// compatibility mode, ring 0 64-bit.
//
// int 0x80 and a call gate exist on every CPU; SYSENTER on Intel's, SYSCALL
// (CSTAR) on AMD's, each #UD on the other's.

#define USER_BITS       32
#define KERNEL_BITS     64
#define SYSRET          sysretd
#define SYSEXIT         sysexitd
#include "bench.inc"
#include "trips32.inc"

        .text
#include "bench-user.inc"
#include "bench-handlers.inc"
