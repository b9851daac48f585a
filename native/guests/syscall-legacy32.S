// syscall-legacy32.S - system calls of 32-bit code without long mode: ring 3 and
// ring 0 both 32-bit.
//
// int 0x80, SYSENTER and a call gate exist on every CPU; SYSCALL (EIP from
// STAR[31:0]) on AMD's, Intel's give #UD.

#define USER_BITS       32
#define KERNEL_BITS     32
#define SYSRET          sysret
#define SYSEXIT         sysexit
#include "bench.inc"
#include "trips32.inc"

        .text
#include "bench-user.inc"
#include "bench-handlers.inc"
