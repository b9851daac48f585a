// exit-ladder.S - 64-bit ring 0 that leaves the guest in every way there is.
//
// A loop for each way: REPEATS times UNROLLED of it between two stamps, the
// ticks stored, one more exit at the batch's end.

#define USER_BITS       64
#define KERNEL_BITS     64
#include "bench.inc"

#define UNROLLED        8

#define PORT_SHIM       0x10            // the host decides who answers these
#define PORT_PYTHON     0x11
#define PORT_DOORBELL   0x12
#define PIC_MASK        0x21            // of KVM's interrupt controller
#define MMIO_SHIM       0xd0001000
#define MMIO_PYTHON     0xd0002000
#define MMIO_DOORBELL   0xd0003000
#define IOAPIC          0xfec00000
#define MSR_APIC_BASE   0x1b            // no CPU lets a guest read it unseen
#define HC_POLL_IRQ     1               // KVM_HC_VAPIC_POLL_IRQ: does nothing

#define LAPIC_EOI       0xfee000b0
#define LAPIC_SPURIOUS  0xfee000f0
#define LAPIC_TIMER     0xfee00320
#define MSR_DEADLINE    0x6e0           // IA32_TSC_DEADLINE
#define SOFTWARE_ENABLE 0x1ff           // the LAPIC on, spurious vector 0xff
#define DEADLINE_MODE   0x40000         // in the timer's LVT entry
#define VECTOR_TIMER    0x40
#define AHEAD           (CONFIG + 0x40) // ticks from arming to the deadline

        EXPORT  "kernel"
        EXPORT  "UNROLLED", UNROLLED
        EXPORT  "PORT_SHIM", PORT_SHIM
        EXPORT  "PORT_PYTHON", PORT_PYTHON
        EXPORT  "PORT_DOORBELL", PORT_DOORBELL
        EXPORT  "MMIO_SHIM", MMIO_SHIM
        EXPORT  "MMIO_PYTHON", MMIO_PYTHON
        EXPORT  "MMIO_DOORBELL", MMIO_DOORBELL
        EXPORT  "VECTOR_TIMER", VECTOR_TIMER
        EXPORT  "AHEAD", AHEAD

// A way may change EAX, EBX, ECX and EDX.
.macro WAY_empty
        nop
.endm

.macro WAY_cpuid
        xor     eax, eax
        cpuid
.endm

.macro WAY_rdmsr
        mov     ecx, MSR_APIC_BASE
        rdmsr
.endm

.macro WAY_vmcall
        mov     eax, HC_POLL_IRQ
        vmcall
.endm

.macro WAY_vmmcall
        mov     eax, HC_POLL_IRQ
        vmmcall
.endm

.macro WAY_pio_kernel
        in      al, PIC_MASK
.endm

.macro WAY_pio_shim
        out     PORT_SHIM, al
.endm

.macro WAY_pio_python
        out     PORT_PYTHON, al
.endm

.macro WAY_pio_doorbell
        out     PORT_DOORBELL, al
.endm

.macro WAY_mmio_kernel
        mov     ebx, IOAPIC
        mov     eax, [rbx]
.endm

.macro WAY_mmio_shim
        mov     ebx, MMIO_SHIM
        mov     [rbx], eax
.endm

.macro WAY_mmio_python
        mov     ebx, MMIO_PYTHON
        mov     [rbx], eax
.endm

.macro WAY_mmio_doorbell
        mov     ebx, MMIO_DOORBELL
        mov     [rbx], eax
.endm

.macro WAY_hlt
        hlt
.endm

.macro LOOP name
        .balign 64
        EXPORT  "loop.\name"
        mov     ebp, RECORDS
.Lbatch\@:
        mov     edi, [REPEATS]
        STAMP_BEGIN
        mov     esi, eax
.Lagain\@:
        .rept   UNROLLED
        WAY_\name
        .endr
        dec     edi
        jnz     .Lagain\@
        STAMP_END
        sub     eax, esi
        mov     [rbp], eax
        add     ebp, 4
        EXIT_TO_HOST
        jmp     .Lbatch\@
.endm

        .text
        LOOP    empty
        LOOP    cpuid
        LOOP    rdmsr
        LOOP    vmcall
        LOOP    vmmcall
        LOOP    pio_kernel
        LOOP    pio_shim
        LOOP    pio_python
        LOOP    pio_doorbell
        LOOP    mmio_kernel
        LOOP    mmio_shim
        LOOP    mmio_python
        LOOP    mmio_doorbell
        LOOP    hlt

// ---- HLT until the LAPIC's timer wakes it: ticks from the deadline to the handler ---
        .balign 64
        EXPORT  "loop.wake"
        mov     ebp, RECORDS
        mov     ebx, LAPIC_SPURIOUS
        mov     dword ptr [rbx], SOFTWARE_ENABLE
        mov     ebx, LAPIC_TIMER
        mov     dword ptr [rbx], DEADLINE_MODE | VECTOR_TIMER
wake_batch:
        mov     edi, [REPEATS]
1:      rdtsc
        add     eax, [AHEAD]
        adc     edx, 0
        mov     esi, eax
        mov     ecx, MSR_DEADLINE
        wrmsr
        sti
        hlt                             // STI holds interrupts off until here
        cli
        dec     edi
        jnz     1b
        EXIT_TO_HOST
        jmp     wake_batch

        .balign 64
        EXPORT  "timer"
        rdtsc
        sub     eax, esi
        mov     [rbp], eax
        add     ebp, 4
        mov     rax, [rsp]
        cmp     byte ptr [rax], 0xf4    // QEMU can lose STI's hold over an AMD-V exit: HLT behind
        jne     1f                      // it would wait for an interrupt that has been
        inc     qword ptr [rsp]
1:      mov     ebx, LAPIC_EOI
        mov     dword ptr [rbx], 0
        iretq
