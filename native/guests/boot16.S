// boot16.S - a boot sector: 512 bytes, loaded at 0x7c00, entered in real mode.
//
// Prints one line on COM1 and exits with status 0. Needs no BIOS: the serial
// port is driven directly, and no INT is used. No segment register is assumed.

        .intel_syntax noprefix
        .code16
#include "serial.inc"

        .text
        .globl  _start
_start:
        ljmp    0, offset 1f            // CS = 0, wherever the loader had it
1:      cld
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, offset _start       // the stack grows down from the sector
        call    serial_init
        PRINT   "Hello from real mode: a boot sector at 0000:7c00.", EOL
        POWER_OFF 0

        SERIAL_FUNCTIONS

        .section .signature, "a"        // at byte 510
        .byte   0x55, 0xaa
