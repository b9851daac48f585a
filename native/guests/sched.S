// sched.S - a preemptive kernel: threads in ring 3, round robin, every switch written down.
//
// One vCPU, one kernel: each has a block of memory of its own (sched.inc), which GS points to, and
// schedules its own threads. The host fills the block in: threads with their first registers, the
// run queue, the length of a slice. Then it only reads.
//
// An interrupt or system call from ring 3 saves the registers in the thread's own record, since
// that is where the TSS's RSP0 points (SDM vol. 3, "Stack Switching in 64-Bit Mode"): to switch
// threads is to leave by another record. Interrupts stay off in ring 0.
        .intel_syntax noprefix
#include "exports.inc"
#include "x86.inc"
#include "sched.inc"

// RAX is the record's highest register, R15 its lowest.
#define ALL_REGISTERS   rax, rbx, rcx, rdx, rsi, rdi, rbp, \
                        r8, r9, r10, r11, r12, r13, r14, r15
#define ALL_REVERSED    r15, r14, r13, r12, r11, r10, r9, r8, \
                        rbp, rdi, rsi, rdx, rcx, rbx, rax
#define SAVED_RAX       (14 * 8)        // from RSP, when all are pushed
#define SAVED_RBX       (13 * 8)

.macro SAVE_ALL
        .irp    register, ALL_REGISTERS
        push    \register
        .endr
.endm

// The TSC in RAX, and in R11 KVM's steal time at that moment: had the host taken the vCPU away in
// between, the steal time would have changed. Clobbers RDX.
.macro NOW
.Lnow\@:
        mov     r11, gs:[STEAL]
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        cmp     r11, gs:[STEAL]
        jne     .Lnow\@
.endm

        .text
// ---- Ring 0: start ----------------------------------------------------------
        EXPORT  "start"
        mov     ecx, MSR_APIC_BASE      // x2APIC: an EOI is one WRMSR, not an access to decode
        rdmsr
        or      eax, APIC_X2APIC
        wrmsr
        SET_MSR X2APIC_SPURIOUS, APIC_ENABLE | 0xff
        SET_MSR X2APIC_DIVIDE, DIVIDE_BY_1
        SET_MSR X2APIC_LVT_TIMER, VECTOR_TIMER  // one shot: armed anew at every switch
        NOW
        mov     gs:[STARTED], rax
        mov     r12, rax
        mov     r13d, REASON_START
        mov     r14d, NOBODY
        xor     ebx, ebx
        push    rbx                     // a record's place for RBX, which `leave_to` reads
        sub     rsp, SAVED_RBX
        jmp     next

// ---- Ring 0: ways in --------------------------------------------------------
        .balign 16
        EXPORT  "timer"
        SAVE_ALL
        NOW
        mov     r12, rax
        SET_MSR X2APIC_EOI, 0
        mov     r13d, REASON_TIMER
        jmp     preempt

// SYSCALL changes neither stack nor interrupts' frame: make both look like an interrupt's.
        .balign 16
        EXPORT  "syscall"
        mov     gs:[USER_RSP], rsp
        mov     rsp, gs:[FRAME_TOP]
        push    USER_DS
        push    qword ptr gs:[USER_RSP]
        push    r11
        push    USER_CS64
        push    rcx
        // falls through
        EXPORT  "interrupt"
        SAVE_ALL
        NOW
        mov     r12, rax
        mov     r14d, gs:[CURRENT]
        mov     eax, [rsp + SAVED_RAX]
        cmp     eax, CALL_EXIT
        mov     r13d, REASON_EXIT
        je      next
        cmp     eax, CALL_WRITE
        je      write
        mov     r13d, REASON_YIELD
        cmp     eax, CALL_YIELD
        je      preempt
        mov     qword ptr [rsp + SAVED_RAX], -1
        mov     r13d, REASON_WRITE      // no such call: no switch
        jmp     back

// ---- Ring 0: the scheduler ---------------------------------------------------
// R12: when ring 0 was entered; R11: the steal time then; R13D: why; R14D: the thread that ran.
preempt:
        mov     r14d, gs:[CURRENT]
        mov     ecx, gs:[QUEUE_TAIL]
        mov     edx, ecx
        and     edx, THREADS_MOST - 1
        mov     gs:[QUEUE + rdx * 4], r14d
        inc     ecx
        mov     gs:[QUEUE_TAIL], ecx
next:
        mov     ecx, gs:[QUEUE_HEAD]
        cmp     ecx, gs:[QUEUE_TAIL]
        je      nobody
        mov     edx, ecx
        and     edx, THREADS_MOST - 1
        mov     edi, gs:[QUEUE + rdx * 4]
        inc     ecx
        mov     gs:[QUEUE_HEAD], ecx
        jmp     leave_to
back:
        mov     edi, r14d

// To thread EDI: the switch is written down, its record becomes the stack.
leave_to:
        mov     gs:[CURRENT], edi
        mov     rsi, rdi
        shl     rsi, THREAD_SHIFT
        add     rsi, gs:[SELF]
        add     rsi, THREADS
        call    write_down
        lea     rsp, [rsi + FRAME]
        cmp     r13d, REASON_WRITE      // that thread goes on with what it has left
        je      1f
        inc     qword ptr [rsi + SLICES]
        lea     rcx, [rsi + FRAME_END]
        mov     rbp, gs:[TSS_RSP0]
        mov     [rbp], rcx
        mov     gs:[FRAME_TOP], rcx
        mov     ecx, X2APIC_TIMER_COUNT
        mov     eax, gs:[SLICE]
        xor     edx, edx
        wrmsr
1:      call    close_record
        .irp    register, ALL_REVERSED
        pop     \register
        .endr
        iretq

// All threads have ended.
nobody:
        mov     edi, NOBODY
        mov     gs:[CURRENT], edi
        call    write_down
        call    close_record
        mov     eax, gs:[VCPU]
        mov     edx, PORT_FINISHED
        out     dx, eax
1:      hlt                             // interrupts are off: until the host stops it
        jmp     1b

// The first part of a switch's record, which is at R8 then. Clobbers RAX, RCX.
write_down:
        mov     r8, gs:[SWITCHES]
        and     r8, SWITCH_RING - 1
        shl     r8, SWITCH_SHIFT
        add     r8, gs:[SELF]
        add     r8, SWITCH_LOG
        mov     rcx, [rsp + 8 + SAVED_RBX]      // the return address is on the stack, too
        mov     [r8 + SWITCH_ALIVE], rcx
        mov     [r8 + SWITCH_ENTERED], r12
        mov     [r8 + SWITCH_STEAL_IN], r11
        mov     eax, r13d               // reason << 16 | to << 8 | from
        shl     eax, 8
        or      eax, edi
        shl     eax, 8
        or      eax, r14d
        mov     [r8 + SWITCH_INFO], rax
        ret

// The rest, as late as can be: when ring 0 was left. Clobbers RAX, RCX, RDX, R11.
close_record:
        NOW
        mov     [r8 + SWITCH_STEAL_OUT], r11
        mov     [r8 + SWITCH_LEFT], rax
        mov     gs:[RESUMED], rax
        mov     rcx, gs:[SWITCHES]
        inc     rcx
        mov     [r8 + SWITCH_NUMBER], rcx       // last: the record is complete
        mov     gs:[SWITCHES], rcx
        ret

// write(RDI: address, RSI: bytes): to the debug console, from the thread's own memory only.
write:
        mov     r13d, REASON_WRITE
        mov     qword ptr [rsp + SAVED_RAX], -1
        cmp     rsi, WRITE_MOST
        ja      back
        mov     rcx, gs:[SELF]
        cmp     rdi, rcx
        jb      back
        add     rcx, BLOCK_SIZE - WRITE_MOST
        cmp     rdi, rcx
        ja      back
        mov     [rsp + SAVED_RAX], rsi
        mov     rcx, rsi
        mov     rsi, rdi
        mov     edx, PORT_CONSOLE
        rep outsb
        jmp     back

// ---- Ring 3: looking at the clock ----------------------------------------------
// RBX: when this thread was last seen alive, which ring 0 finds there; R9: number of switches then;
// R10: ticks from which on a gap counts; R15: the thread's record.
//
// A gap that a switch lies in is not a gap: this thread was alive again when ring 0 left.
sample:
        NOW
        mov     r8, gs:[SWITCHES]
        cmp     r8, r9
        jne     2f
1:      mov     rcx, rax
        sub     rcx, rbx
        jb      3f                      // the stamp is older than the switch that came behind it
        mov     rbx, rax
        cmp     rcx, r10
        ja      record
3:      inc     qword ptr [r15 + LOOPS]
        ret
2:      mov     r9, r8
        mov     rbx, gs:[RESUMED]
        jmp     1b

// The place is taken in one instruction, so an interrupt may come in between.
record:
        mov     rdx, rax
        sub     rdx, rcx
        mov     ecx, 1
        xadd    gs:[GAPS], rcx
        mov     rdi, rcx
        and     rdi, GAP_RING - 1
        shl     rdi, GAP_SHIFT
        add     rdi, gs:[SELF]
        mov     [rdi + GAP_LOG + GAP_START], rdx
        mov     [rdi + GAP_LOG + GAP_END], rax
        mov     [rdi + GAP_LOG + GAP_STEAL], r11
        inc     rcx
        mov     [rdi + GAP_LOG + GAP_NUMBER], rcx
        jmp     3b

// The instruction that the host's module lets into ring 0 from here: two bytes each, INT 3 unless
// the host puts SYSCALL or INT 0x80 in its place.
.macro CALL_KERNEL number
        mov     eax, \number
        EXPORT  "call.\@"
        .byte   0xcd, 0x03
.endm

// ---- Ring 3: what threads do ----------------------------------------------------
// All the time.
        EXPORT  "thread.spin"
1:      call    sample
        jmp     1b

// Use the memory at R12 to R13, a line at a time, look at the clock R14 times, yield; for ever.
        EXPORT  "thread.yield"
1:      mov     rsi, r12
2:      cmp     rsi, r13
        jae     3f
        inc     dword ptr [rsi]
        add     rsi, 64
        jmp     2b
3:      mov     rbp, r14
4:      call    sample
        dec     rbp
        jnz     4b
        CALL_KERNEL CALL_YIELD
        jmp     1b

// R14 times: write the R13 bytes at R12, yield. Then exit.
        EXPORT  "thread.write"
1:      call    sample
        mov     rdi, r12
        mov     rsi, r13
        CALL_KERNEL CALL_WRITE
        call    sample
        CALL_KERNEL CALL_YIELD
        dec     r14
        jnz     1b
        CALL_KERNEL CALL_EXIT
        ud2
