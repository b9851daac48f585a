// user.S - a ring-3 program: says hello by a system call, then exits by one.
//
// A flat binary for 64-bit code, any load address, no stack needed. The calling
// convention is Linux's: number in RAX, arguments in RDI, RSI, RDX; SYSCALL
// itself overwrites RCX (with RIP) and R11 (with RFLAGS).

        .intel_syntax noprefix

#define SYS_WRITE       1
#define SYS_EXIT        60
#define STDOUT          1

        .text
        .globl  _start
_start:
        mov     eax, SYS_WRITE
        mov     edi, STDOUT
        lea     rsi, [rip + greeting]
        mov     edx, offset greeting_size
        syscall
        mov     eax, SYS_EXIT
        xor     edi, edi
        syscall
        ud2                             // exit does not return

greeting:
        .ascii  "Hello from ring 3.\n"
        .set    greeting_size, . - greeting
