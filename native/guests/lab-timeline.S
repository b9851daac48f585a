// lab-timeline.S - 64-bit: one system call and one exit, stamped at every step.
//
// A turn, over and over, each from one entry into the guest to the next exit:
//   ring 0  first instructions, IRETQ
//   ring 3  a call that only comes back, CALLS times over; then one more
//   ring 0  of that last call leaves the guest
// All stamps are the whole TSC, so that they can stand beside the host's own.

        .intel_syntax noprefix
#include "exports.inc"
#include "x86.inc"

#define STAMPS          0x200000        // 64 bits each; a turn writes all of them anew
#define CALLS           0x200100        // written by the host
#define KERNEL_STACK    0x208000        // its top
#define USER_STACK      0x206000
#define PORT_LEAVE      0x10

#define FIRST           0               // in ring 0, behind the entry
#define BEFORE          1               // in ring 3, at the call
#define ENTRY           2               // in ring 0: the handler's first instruction
#define RETURN          3               // ... and its last
#define BACK            4               // in ring 3
#define LAST_ENTRY      5               // in ring 0, of the last call
#define LEAVE           6               // ... at the instruction that leaves the guest
#define BEFORE_BEFORE   7               // right before BEFORE: what a stamp costs

        EXPORT  "STAMPS", STAMPS
        EXPORT  "CALLS", CALLS
        EXPORT  "PORT_LEAVE", PORT_LEAVE
        EXPORT  "STAMP_COUNT", 8

// Clobbers EAX and EDX. RDI: added to the address, for the handler's.
.macro STAMP index, base=0
        STAMP_BEGIN
        .ifc    \base,rdi
        mov     [rdi + STAMPS + 8 * \index], eax
        mov     [rdi + STAMPS + 8 * \index + 4], edx
        .else
        mov     [STAMPS + 8 * \index], eax
        mov     [STAMPS + 8 * \index + 4], edx
        .endif
.endm

.macro USER name, call:vararg
        .balign 64
user_\name:
        mov     esi, [CALLS]
        xor     edi, edi                // the handler's stamps are in their place
        .balign 64
.Lagain\@:
        STAMP   BEFORE_BEFORE
        STAMP   BEFORE
        \call
        STAMP   BACK
        dec     esi
        jnz     .Lagain\@
        mov     edi, 8 * (LAST_ENTRY - ENTRY)
        \call                           // does not come back
        ud2
.endm

.macro KERNEL name, return
        .balign 64
        EXPORT  "entry.\name"
        STAMP   ENTRY, rdi
        test    edi, edi
        jnz     leave_\name
        STAMP   RETURN, rdi
        \return

        .balign 64
leave_\name:
        STAMP   LEAVE
        out     PORT_LEAVE, al
        EXPORT  "turn.\name"
        STAMP   FIRST
        mov     esp, KERNEL_STACK       // what the last call has pushed is forgotten
        push    USER_DS
        push    USER_STACK
        push    FLAGS_NONE
        push    USER_CS64
        push    offset user_\name
        iretq
.endm

        .text
        USER    syscall, syscall
        USER    int3, .byte 0xcd, 3     // INT 3 by its number

        EXPORT  "kernel"                // stamps from here on are ring 0's
        KERNEL  syscall, sysretq
        KERNEL  int3, iretq
