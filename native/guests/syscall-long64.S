// syscall-long64.S - system calls of 64-bit code, to 64-bit ring 0.
//
// int 0x80, SYSCALL (LSTAR) and a call gate exist on every CPU; SYSENTER on
// Intel's, AMD's give #UD.

#define USER_BITS       64
#define KERNEL_BITS     64
#define SYSRET          sysretq
#define SYSEXIT         sysexitq
#include "bench.inc"

.macro TRIP_int80
        mov     eax, SERVICE
        int     0x80
.endm

.macro TRIP_syscall
        mov     eax, SERVICE
        syscall
.endm

// SYSENTER saves nothing; SYSEXIT takes RSP from RCX and RIP from RDX.
.macro TRIP_sysenter
        mov     eax, SERVICE
        mov     rcx, rsp
        lea     rdx, [rip + .Lback\@]
        sysenter
.Lback\@:
.endm

.macro TRIP_callgate
        mov     eax, SERVICE
        call    fword ptr [GATE_POINTER]
.endm

        .text
#include "bench-user.inc"
#include "bench-handlers.inc"
