// lab-vmx.S - a hypervisor in non-root ring 0: VT-x on, a guest of a few instructions, VT-x off.
//
// L0 is the host's KVM, L1 this program, L2 its guest. L2 has L1's segments and page tables, so
// that both halves of the VMCS hold the same values but for RIP and RSP. The wrong ways are tried
// as well, before each right one.
//
// Sources: SDM vol. 3, "Virtual Machine Control Structures" (fields), "VM Entries" (checks),
// "VM Exits"; its appendices "Field Encoding in VMCS" and "VMX Capability Reporting Facility".

#include "lab-steps.inc"

#define MSR_FEATURE_CONTROL 0x3a
#define LOCKED_AND_ON   5               // lock, VMX outside SMX
#define MSR_EFER        0xc0000080
#define MSR_BASIC       0x480           // revision; bit 55: there are "true" controls
#define MSR_CONTROLS    0x481           // pin, processor, exit, entry
#define MSR_TRUE        0x48d           // the same four
#define CR4_VMXE        0x2000

#define VMXON_REGION    0x200000
#define VMCS            0x201000
#define POINTERS        0x202000        // the operands of VMXON and VMPTRLD
#define L2_STACK        0x204000        // its top
#define L2_SAW          0x205000        // EBX, ECX, EDX of CPUID in L2
#define TRIPS           16              // exits of L2 that are counted together

        EXPORT  "L2_SAW", L2_SAW
        EXPORT  "TRIPS", TRIPS

// ---- Fields of the VMCS, by encoding ----------------------------------------
#define PIN_CONTROLS    0x4000
#define CPU_CONTROLS    0x4002
#define EXIT_CONTROLS   0x400c
#define ENTRY_CONTROLS  0x4012
#define LINK_POINTER    0x2800
#define INSTRUCTION_ERROR 0x4400
#define EXIT_REASON     0x4402
#define EXIT_LENGTH     0x440c
#define QUALIFICATION   0x6400
#define GUEST_RIP       0x681e
#define GUEST_RFLAGS    0x6820
#define HOST_CS         0x0c02
#define HOST_RIP        0x6c16

#define HLT_EXITING     0x80            // processor-based
#define LONG_MODE       0x200           // exit: L1 is 64-bit; entry: so is L2

#define REASON_CPUID    10

// ---- VMWRITE of a field; clobber RAX ----------------------------------------
.macro SET field, value
        mov     eax, \field
        vmwrite rax, \value
.endm

.macro SET_SAME guest, host, value
        SET     \guest, \value
        SET     \host, \value
.endm

.macro GET into, field
        mov     eax, \field
        vmread  \into, rax
.endm

// ---- VMLAUNCH or VMRESUME ---------------------------------------------------
// A refusal goes on behind the instruction: CF, or ZF and an error number in RDI. An exit of L2,
// or an entry that failed on L2's state, arrives at HOST_RIP, with the reason in RSI and the
// qualification in RDI.
.macro ENTER instruction
        lea     rbp, [rip + 8f]
        SET     HOST_RIP, rbp
        \instruction
        pushfq
        GET     rdi, INSTRUCTION_ERROR
        popfq
        jmp     7f
8:      GET     rsi, EXIT_REASON
        GET     rdi, QUALIFICATION
7:
.endm

// Behind the instruction that L2 has left with, for which L1 has done what is to be done.
.macro SKIP_INSTRUCTION
        GET     rcx, GUEST_RIP
        GET     rdx, EXIT_LENGTH
        add     rcx, rdx
        SET     GUEST_RIP, rcx
.endm

        .text
        EXPORT  "start"
        mov     qword ptr [POINTERS], VMXON_REGION
        mov     qword ptr [POINTERS + 8], VMCS
        mov     qword ptr [POINTERS + 16], 1            // not aligned: no VMCS

        STEP    vmxon_early
        vmxon   [POINTERS]
        REPORT

        STEP    vmxe
        mov     rax, cr4
        or      eax, CR4_VMXE
        mov     cr4, rax
        REPORT
        test    ebx, ebx
        jnz     finish

        STEP    feature_read
        mov     ecx, MSR_FEATURE_CONTROL
        rdmsr
        mov     esi, eax
        REPORT
        test    ebx, ebx
        jnz     finish
        mov     r14d, esi

        STEP    vmxon_locked_out
        vmxon   [POINTERS]
        REPORT

        STEP    feature_write
        mov     ecx, MSR_FEATURE_CONTROL
        mov     eax, LOCKED_AND_ON
        xor     edx, edx
        wrmsr
        REPORT

        STEP    feature_again
        mov     ecx, MSR_FEATURE_CONTROL
        mov     eax, LOCKED_AND_ON
        xor     edx, edx
        wrmsr
        REPORT

        STEP    basic
        mov     ecx, MSR_BASIC
        rdmsr
        mov     esi, eax
        mov     edi, edx
        REPORT
        mov     r13d, edi
        and     esi, 0x7fffffff
        mov     [VMXON_REGION], esi     // both start with the revision
        mov     [VMCS], esi

        STEP    vmxon
        vmxon   [POINTERS]
        REPORT
        test    ebx, ebx
        jnz     finish
        test    dl, 0x41                // CF or ZF
        jnz     finish

        STEP    vmxon_again
        vmxon   [POINTERS]
        REPORT

        STEP    vmlaunch_nothing
        vmlaunch
        REPORT

        STEP    vmptrld_misaligned
        vmptrld [POINTERS + 16]
        REPORT

        STEP    vmclear
        vmclear [POINTERS + 8]
        REPORT

        STEP    vmptrld
        vmptrld [POINTERS + 8]
        REPORT

        STEP    vmwrite_unknown
        mov     eax, 0x6fff             // no field has this encoding
        vmwrite rax, rax
        pushfq
        GET     rdi, INSTRUCTION_ERROR
        popfq
        REPORT

        STEP    fields
        call    write_fields
        mov     esi, offset FIELDS
        REPORT

        STEP    launch_bad_control
        GET     r12, PIN_CONTROLS
        xor     edx, edx
        SET     PIN_CONTROLS, rdx
        ENTER   vmlaunch
        REPORT
        SET     PIN_CONTROLS, r12

        STEP    launch_bad_host
        GET     r12, HOST_CS
        xor     edx, edx
        SET     HOST_CS, rdx
        ENTER   vmlaunch
        REPORT
        SET     HOST_CS, r12

        STEP    launch_bad_guest
        xor     edx, edx                // bit 1 is always one
        SET     GUEST_RFLAGS, rdx
        ENTER   vmlaunch
        REPORT
        mov     edx, 2
        SET     GUEST_RFLAGS, rdx

        STEP    launch_bad_link
        mov     edx, 1
        SET     LINK_POINTER, rdx
        ENTER   vmlaunch
        REPORT
        mov     rdx, -1
        SET     LINK_POINTER, rdx

        STEP    resume_clear
        ENTER   vmresume
        REPORT

        STEP    launch
        ENTER   vmlaunch
        REPORT
        test    dl, 0x41
        jnz     leave

        STEP    launch_again
        ENTER   vmlaunch
        REPORT

// L2 asked CPUID: L1 decides what it sees.
        SKIP_INSTRUCTION
        STEP    resume
        mov     ebx, 0x706d766b         // "kvmp"
        mov     ecx, 0x6f742079         // "y to"
        mov     edx, 0x21324c20         // " L2!"
        ENTER   vmresume
        mov     ebx, 0                  // not a fault: L2's
        REPORT

        SKIP_INSTRUCTION
        STEP    resume_hlt
        ENTER   vmresume
        REPORT
        SKIP_INSTRUCTION

        STEP    host_rip                // once for all of what follows
        lea     rbp, [rip + 3f]
        SET     HOST_RIP, rbp
        REPORT

        STEP    trips
        mov     r12d, TRIPS
1:      vmresume
        jmp     2f
3:      GET     rsi, EXIT_REASON
        cmp     esi, REASON_CPUID
        jne     2f
        SKIP_INSTRUCTION
        dec     r12d
        jnz     1b
2:      mov     ebx, 0
        REPORT

leave:
        STEP    vmxe_off_inside
        mov     rax, cr4
        and     eax, ~CR4_VMXE
        mov     cr4, rax
        REPORT

        STEP    vmxoff
        vmxoff
        REPORT

        STEP    vmxoff_again
        vmxoff
        REPORT

        STEP    vmxe_off
        mov     rax, cr4
        and     eax, ~CR4_VMXE
        mov     cr4, rax
        REPORT

        FINISH_AND_L2 vmcall, L2_SAW

// ---- The VMCS ---------------------------------------------------------------
// What does not depend on the CPU and on where L1's tables are.
.macro FIELD encoding, value
        .long   \encoding
        .quad   \value
.endm
        .balign 8
fixed_fields:
        FIELD   LINK_POINTER, -1        // none
        FIELD   0x2802, 0               // guest DEBUGCTL
        FIELD   0x4004, 0               // exceptions that exit: none
        FIELD   0x4006, 0               // #PF mask
        FIELD   0x4008, 0               //     match
        FIELD   0x400a, 0               // CR3 targets
        FIELD   0x400e, 0               // MSRs to store on exit
        FIELD   0x4010, 0               //      to load
        FIELD   0x4014, 0               //      to load on entry
        FIELD   0x4016, 0               // no event to deliver on entry
        FIELD   0x6000, 0               // CR0 bits that L1 keeps: none
        FIELD   0x6002, 0               // CR4
        FIELD   0x6004, 0               // their shadows
        FIELD   0x6006, 0
        FIELD   0x4824, 0               // interruptibility
        FIELD   0x4826, 0               // active
        FIELD   0x482a, 0               // SYSENTER_CS: guest
        FIELD   0x4c00, 0               //              host
        FIELD   0x6824, 0               // SYSENTER_ESP, _EIP
        FIELD   0x6826, 0
        FIELD   0x6c10, 0
        FIELD   0x6c12, 0
        FIELD   0x6822, 0               // pending debug exceptions
        FIELD   0x681a, 0x400           // DR7
        FIELD   GUEST_RFLAGS, 2
        FIELD   GUEST_RIP, l2
        FIELD   0x681c, L2_STACK        // RSP: guest
        FIELD   0x6c14, STACK           //      host
        FIELD   0x0800, 0x18            // guest ES CS SS DS FS GS LDTR TR: selectors
        FIELD   0x0802, 0x10
        FIELD   0x0804, 0x18
        FIELD   0x0806, 0x18
        FIELD   0x0808, 0x18
        FIELD   0x080a, 0x18
        FIELD   0x080c, 0
        FIELD   0x080e, 0x40
        FIELD   0x0c00, 0x18            // host, without LDTR
        FIELD   HOST_CS, 0x10
        FIELD   0x0c04, 0x18
        FIELD   0x0c06, 0x18
        FIELD   0x0c08, 0x18
        FIELD   0x0c0a, 0x18
        FIELD   0x0c0c, 0x40
        FIELD   0x4800, 0xffffffff      // limits
        FIELD   0x4802, 0xffffffff
        FIELD   0x4804, 0xffffffff
        FIELD   0x4806, 0xffffffff
        FIELD   0x4808, 0xffffffff
        FIELD   0x480a, 0xffffffff
        FIELD   0x480c, 0
        FIELD   0x480e, 0x67            // the TSS
        FIELD   0x4814, 0xc093          // access rights: flat data,
        FIELD   0x4816, 0xa09b          // 64-bit code,
        FIELD   0x4818, 0xc093
        FIELD   0x481a, 0xc093
        FIELD   0x481c, 0xc093
        FIELD   0x481e, 0xc093
        FIELD   0x4820, 0x10000         // unusable,
        FIELD   0x4822, 0x8b            // a busy TSS
        FIELD   0x6806, 0               // bases, but TR's
        FIELD   0x6808, 0
        FIELD   0x680a, 0
        FIELD   0x680c, 0
        FIELD   0x680e, 0
        FIELD   0x6810, 0
        FIELD   0x6812, 0
        FIELD   0x6c06, 0               // host FS, GS
        FIELD   0x6c08, 0
fixed_end:
        .set    FIELDS, (fixed_end - fixed_fields) / 12 + 18 // HOST_RIP is for later

write_fields:
        lea     rsi, [rip + fixed_fields]
        lea     rdi, [rip + fixed_end]
1:      mov     eax, [rsi]
        vmwrite rax, qword ptr [rsi + 4]
        add     rsi, 12
        cmp     rsi, rdi
        jb      1b

        mov     rdx, cr0
        SET_SAME 0x6800, 0x6c00, rdx
        mov     rdx, cr3
        SET_SAME 0x6802, 0x6c02, rdx
        mov     rdx, cr4
        SET_SAME 0x6804, 0x6c04, rdx

        sub     rsp, 16
        sgdt    [rsp]
        mov     rdx, [rsp + 2]
        SET_SAME 0x6816, 0x6c0c, rdx
        mov     rbp, rdx
        movzx   edx, word ptr [rsp]
        SET     0x4810, rdx
        sidt    [rsp]
        mov     rdx, [rsp + 2]
        SET_SAME 0x6818, 0x6c0e, rdx
        movzx   edx, word ptr [rsp]
        SET     0x4812, rdx
        add     rsp, 16

        mov     edx, [rbp + 0x40 + 2]   // TR's base, out of its descriptor
        and     edx, 0xffffff
        movzx   eax, byte ptr [rbp + 0x40 + 7]
        shl     eax, 24
        or      edx, eax
        SET_SAME 0x6814, 0x6c0a, rdx

        // Of the controls, bits that must be one and bits that may be: from the "true" MSRs, if
        // there are any (VMX_BASIC, bit 55).
        mov     r12d, MSR_CONTROLS
        mov     eax, MSR_TRUE
        bt      r13d, 55 - 32
        cmovc   r12d, eax
        xor     ebp, ebp
        mov     edi, PIN_CONTROLS
        call    set_controls
        mov     ebp, HLT_EXITING
        mov     edi, CPU_CONTROLS
        call    set_controls
        mov     ebp, LONG_MODE
        mov     edi, EXIT_CONTROLS
        call    set_controls
        mov     edi, ENTRY_CONTROLS
        // falls through

// EBP: what is wanted; EDI: the field; R12D: the MSR, the next one afterwards.
set_controls:
        mov     ecx, r12d
        rdmsr
        or      eax, ebp
        and     eax, edx
        mov     edx, eax
        SET     edi, rdx
        inc     r12d
        ret
