// lab-deprivilege.S - one small 32-bit kernel, run in two ways.
//
// The old way, as VMware's and Xen's first versions had it: a monitor has ring 0, the kernel is
// moved to ring 1, its applications stay in ring 3. What the kernel may not do there traps, and the
// monitor does it in its stead. The new way: the kernel has ring 0, of non-root mode, and there is
// no monitor inside.
//
// The file: the kernel and its application; then, from `monitor` on, on pages of its own, the
// monitor. Segments of ring 1 and 3 end where it begins. It believes the kernel's pointers (stack,
// tables); one that is to be safe compares each with the limit first.
//
// Sources: SDM vol. 3, "Protection" (rings, limits), "Interrupt and Exception Handling", "Task
// Management" (the TSS's stacks); SDM vol. 2 for what each instruction checks.

        .intel_syntax noprefix
#include "exports.inc"

// ---- Memory -----------------------------------------------------------------
#define CONFIG          0x10000         // written by the host
#define OPERATION       (CONFIG + 0x00) // what to do next
#define REPEATS         (CONFIG + 0x04) // how often
#define PATCHING        (CONFIG + 0x08) // whether the monitor patches the kernel
#define RESULTS         (CONFIG + 0x80) // what the kernel has seen, 32 bits each
#define K_DATA          0x11000
#define SAVED_SP        (K_DATA + 0x00)
#define TICKS           (K_DATA + 0x04) // timer interrupts that have come
#define K_IDT           0x12000
#define K_TSS           0x13000
#define K_STACK         0x20000         // its top
#define U_STACK         0x30000
#define M_DATA          0x200000        // the monitor's, behind the limit
#define VICTIM          (M_DATA + 0xff0)
#define M_GDT           0x201000
#define M_IDT           0x202000
#define M_TSS           0x203000
#define M_SAVED         0x204000        // bytes that patches have replaced
#define M_STACK         0x208000        // its top

// ---- Ports ------------------------------------------------------------------
#define PORT_DONE       0x10            // an operation is over
#define PORT_TIMER      0x11            // a write asks for a timer interrupt
#define PORT_IDLE       0x12            // nothing
#define PORT_PANIC      0x13            // an exception that nobody expected: its vector
#define VECTOR_TIMER    0x20
#define VECTOR_CALL     0x80

// ---- The kernel's selectors --------------------------------------------------
#define KERNEL_CS       0x08
#define KERNEL_DS       0x10
#define USER_CS         0x1b
#define USER_DS         0x23
#define KERNEL_TSS      0x28
#define KERNEL_ENTRIES  6
// The monitor's, in its own table, behind copies of the kernel's.
#define BOOT_CS         0x31            // ring 1
#define BOOT_DS         0x39
#define MONITOR_CS      0x40
#define MONITOR_DS      0x48
#define MONITOR_TSS     0x50

#define FLAT_CODE_0     0x00cf9b000000ffff
#define FLAT_DATA_0     0x00cf93000000ffff
#define FLAT_CODE_3     0x00cffb000000ffff
#define FLAT_DATA_3     0x00cff3000000ffff
#define TSS_AT(base)    (0x0000890000000067 | (base) << 16)   // base below 16 MiB

#define INTERRUPT_GATE  0x8e00          // with the upper half of the offset
#define GATE_DPL1       0xae00          // the same, open to INT from ring 1
#define GATE_DPL3       0xee00          // ... and from ring 3
#define GATE_KEEPS_IF   0x0100          // a trap gate

#define FLAGS_IF        0x200
#define FLAGS_IOPL      0x3000
#define CR0_TS          8

#define SERVICE_NOTHING 0
#define SERVICE_EXIT    1

        EXPORT  "OPERATION", OPERATION
        EXPORT  "REPEATS", REPEATS
        EXPORT  "PATCHING", PATCHING
        EXPORT  "RESULTS", RESULTS
        EXPORT  "PORT_DONE", PORT_DONE
        EXPORT  "PORT_TIMER", PORT_TIMER
        EXPORT  "PORT_IDLE", PORT_IDLE
        EXPORT  "PORT_PANIC", PORT_PANIC
        EXPORT  "VECTOR_TIMER", VECTOR_TIMER
        EXPORT  "K_STACK", K_STACK
        EXPORT  "K_IDT", K_IDT
        EXPORT  "M_IDT", M_IDT
        EXPORT  "VICTIM", VICTIM
        EXPORT  "KERNEL_CS", KERNEL_CS
        EXPORT  "KERNEL_TSS", KERNEL_TSS
        EXPORT  "MONITOR_TSS", MONITOR_TSS

.macro GATE table, vector, handler, selector, attributes
        mov     eax, offset \handler
        mov     edx, eax
        and     eax, 0xffff
        or      eax, \selector << 16
        and     edx, 0xffff0000
        or      edx, \attributes
        mov     [\table + 8 * (\vector)], eax
        mov     [\table + 8 * (\vector) + 4], edx
.endm

// An instruction that shows or changes what a monitor must keep to itself, and does not trap in
// ring 1. The list of them is what a scan of the code would find.
.macro SENSITIVE instruction:vararg
.Lsite\@: \instruction
        .pushsection .text, 1
        .long   .Lsite\@
        .popsection
.endm

        .pushsection .text, 1
        .balign 4
sites:
        .popsection
        .pushsection .text, 2
sites_end:
        .popsection

        .text
// ==== The kernel ==============================================================
        EXPORT  "kernel"
kernel:
        lgdt    [kernel_gdtr]
        .byte   0xea                    // far jump
        .long   1f
        .word   KERNEL_CS
1:      mov     eax, KERNEL_DS
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     esp, K_STACK
        GATE    K_IDT, 6, kernel_panic, KERNEL_CS, INTERRUPT_GATE
        GATE    K_IDT, 13, kernel_panic, KERNEL_CS, INTERRUPT_GATE
        GATE    K_IDT, 14, kernel_panic, KERNEL_CS, INTERRUPT_GATE
        GATE    K_IDT, VECTOR_TIMER, kernel_timer, KERNEL_CS, INTERRUPT_GATE
        GATE    K_IDT, VECTOR_CALL, kernel_call, KERNEL_CS, GATE_DPL3
        lidt    [kernel_idtr]
        mov     dword ptr [K_TSS + 4], K_STACK - 0x1000
        mov     dword ptr [K_TSS + 8], KERNEL_DS
        mov     word ptr [K_TSS + 102], 104
        mov     eax, KERNEL_TSS
        ltr     ax
        sti

next:   mov     edx, PORT_DONE
        out     dx, al
        mov     edi, [REPEATS]
        call    [OPERATION]
        jmp     next

kernel_panic:
        mov     edx, PORT_PANIC
        mov     al, 0xff
        out     dx, al
        jmp     kernel_panic

kernel_timer:
        inc     dword ptr [TICKS]
        SENSITIVE iretd

// A system call as kernels of the time had it: segments saved and loaded, interrupts on while it
// works, off on the way out.
kernel_call:
        push    ds
        push    es
        push    edx
        mov     edx, KERNEL_DS
        mov     ds, edx
        mov     es, edx
        sti
        cmp     eax, SERVICE_EXIT
        je      1f
        cli
        pop     edx
        pop     es
        pop     ds
        SENSITIVE iretd
1:      mov     esp, [SAVED_SP]
        ret

// ---- The operations: each EDI times ------------------------------------------
.macro OPERATION_LOOP name
        EXPORT  "op.\name"
7:
.endm
.macro OPERATION_END
        dec     edi
        jnz     7b
        ret
.endm

        OPERATION_LOOP nothing
        nop
        OPERATION_END

        OPERATION_LOOP cli_sti
        cli
        sti
        OPERATION_END

        OPERATION_LOOP irqsave          // off, and as before: every lock of a kernel
        SENSITIVE pushfd
        cli
        SENSITIVE popfd
        OPERATION_END

        OPERATION_LOOP cr3
        mov     eax, cr3
        mov     cr3, eax
        OPERATION_END

        OPERATION_LOOP load_ss
        mov     eax, KERNEL_DS
        mov     ss, eax
        OPERATION_END

        OPERATION_LOOP lgdt
        lgdt    [kernel_gdtr]
        OPERATION_END

        OPERATION_LOOP lidt
        lidt    [kernel_idtr]
        OPERATION_END

        OPERATION_LOOP in
        mov     edx, PORT_IDLE
        in      al, dx
        OPERATION_END

        OPERATION_LOOP hlt
        hlt
        OPERATION_END

        EXPORT  "op.syscall"
        mov     [SAVED_SP], esp
        push    USER_DS
        push    U_STACK
        push    FLAGS_IF | 2
        push    USER_CS
        push    offset application
        SENSITIVE iretd

// ---- What the kernel sees ----------------------------------------------------
        EXPORT  "op.look"
        SENSITIVE push cs
        pop     eax
        mov     [RESULTS + 0x00], eax
        SENSITIVE sgdt [pointer_buffer]
        mov     eax, [pointer_buffer + 2]
        mov     [RESULTS + 0x04], eax
        SENSITIVE sidt [pointer_buffer]
        mov     eax, [pointer_buffer + 2]
        mov     [RESULTS + 0x08], eax
        xor     eax, eax
        SENSITIVE str eax
        mov     [RESULTS + 0x0c], eax
        mov     eax, cr0                // the task-switched flag on
        or      eax, CR0_TS
        mov     cr0, eax
        xor     eax, eax
        SENSITIVE smsw eax
        mov     [RESULTS + 0x10], eax
        clts
        cli
        SENSITIVE pushfd
        pop     eax
        mov     [RESULTS + 0x14], eax
        sti
        ret

// Interrupts off, a timer interrupt pending, interrupts on with POPF: it should come at once.
        EXPORT  "op.popf_on"
        mov     dword ptr [TICKS], 0
        cli
        mov     edx, PORT_TIMER
        out     dx, al
        push    FLAGS_IF | 2
        SENSITIVE popfd
        nop
        nop
        mov     eax, [TICKS]
        mov     [RESULTS + 0x20], eax
        sti                             // this is never lost
        nop
        nop
        mov     eax, [TICKS]
        mov     [RESULTS + 0x24], eax
        ret

// Interrupts off with POPF, then the timer: it should wait.
        EXPORT  "op.popf_off"
        mov     dword ptr [TICKS], 0
        sti
        push    2
        SENSITIVE popfd
        mov     edx, PORT_TIMER
        out     dx, al
        nop
        nop
        mov     eax, [TICKS]
        mov     [RESULTS + 0x28], eax
        sti
        nop
        nop
        ret

// A store to the monitor's data.
        EXPORT  "op.escape"
        mov     eax, 0x0bad
        mov     [VICTIM], eax           // A3: five bytes
        ret

// ---- The application, in ring 3 ----------------------------------------------
application:
        mov     eax, SERVICE_NOTHING
        int     0x80
        dec     edi
        jnz     application
        mov     eax, SERVICE_EXIT
        int     0x80

        .balign 8
        EXPORT  "KERNEL_GDT"
kernel_gdt:
        .quad   0, FLAT_CODE_0, FLAT_DATA_0, FLAT_CODE_3, FLAT_DATA_3, TSS_AT(K_TSS)
kernel_gdtr:
        .word   8 * KERNEL_ENTRIES - 1
        .long   kernel_gdt
kernel_idtr:
        .word   8 * (VECTOR_CALL + 1) - 1
        .long   K_IDT
pointer_buffer:
        .fill   8

// ==== The monitor =============================================================
#include "lab-monitor.inc"
#include "lab-emulate.inc"
