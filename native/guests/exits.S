// exits.S - the yardstick of the benchmarks: an endless loop of port writes,
// each an exit to the host.
//
// A flat binary for 32- and 64-bit code, ring 0, any load address. Uses EDX and
// AL, touches no memory, needs no stack. The host stops counting when it likes.

        .intel_syntax noprefix

#define YARDSTICK_PORT  0x10

        .text
        .globl  _start
_start:
        mov     edx, YARDSTICK_PORT
1:      out     dx, al
        jmp     1b
