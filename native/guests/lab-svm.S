// lab-svm.S - a hypervisor in non-root ring 0: AMD-V on, a guest of a few instructions, AMD-V off.
//
// L0 is the host's KVM, L1 this program, L2 its guest. L2 has L1's segments and page tables. The
// wrong ways are tried as well, before each right one.
//
// Sources: APM vol. 2, "Secure Virtual Machine" ("VMRUN Instruction", "Canonicalization and
// Consistency Checks") and appendix "Layout of VMCB"; appendix "SVM Intercept Exit Codes".

#include "lab-steps.inc"

#define MSR_EFER        0xc0000080
#define MSR_PAT         0x277
#define MSR_VM_CR       0xc0010114      // bit 4: SVM disabled
#define MSR_HSAVE       0xc0010117      // where VMRUN puts L1's state
#define EFER_SVME       0x1000

#define VMCB            0x200000
#define HSAVE           0x201000
#define L2_STACK        0x204000        // its top
#define L2_SAW          0x205000        // EBX, ECX, EDX of CPUID in L2
#define TRIPS           16              // exits of L2 that are counted together

        EXPORT  "L2_SAW", L2_SAW
        EXPORT  "TRIPS", TRIPS

// ---- Fields of the VMCB -----------------------------------------------------
#define INTERCEPTS      0x0c            // two words
#define ASID            0x58
#define EXIT_CODE       0x70
#define EXIT_INFO_1     0x78
#define STATE_ES        0x400           // selector, attributes, limit, base: 16 bytes
#define STATE_CS        0x410
#define STATE_SS        0x420
#define STATE_DS        0x430
#define STATE_GDTR      0x460
#define STATE_IDTR      0x480
#define STATE_EFER      0x4d0
#define STATE_CR4       0x548
#define STATE_CR3       0x550
#define STATE_CR0       0x558
#define STATE_DR7       0x560
#define STATE_DR6       0x568
#define STATE_RFLAGS    0x570
#define STATE_RIP       0x578
#define STATE_RSP       0x5d8
#define STATE_PAT       0x668

#define INTERCEPT_CPUID (1 << 18)       // first word
#define INTERCEPT_HLT   (1 << 24)
#define INTERCEPT_VMRUN 1               // second word; VMRUN insists on it
#define INTERCEPT_VMMCALL 2

#define FLAT_CODE64     0x0a9b          // attributes
#define FLAT_DATA       0x0c93

#define EXIT_CPUID      0x72
#define CPUID_LENGTH    2
#define VMMCALL_LENGTH  3
#define HLT_LENGTH      1

// ---- VMRUN; then the exit code in RSI, and what it says in RDI ---------------
// The VMCB has RAX, RSP and RIP; the other general registers are L1's and L2's alike.
.macro ENTER
        mov     eax, VMCB
        vmrun
        mov     rsi, [VMCB + EXIT_CODE]
        mov     rdi, [VMCB + EXIT_INFO_1]
.endm

        .text
        EXPORT  "start"
        STEP    vmrun_early
        mov     eax, VMCB
        vmrun
        REPORT

        STEP    vm_cr
        mov     ecx, MSR_VM_CR
        rdmsr
        mov     esi, eax
        REPORT

        STEP    svme
        mov     ecx, MSR_EFER
        rdmsr
        or      eax, EFER_SVME
        wrmsr
        REPORT
        test    ebx, ebx
        jnz     finish

        STEP    vmrun_misaligned
        mov     eax, VMCB + 8
        vmrun
        REPORT

        STEP    hsave
        mov     ecx, MSR_HSAVE
        mov     eax, HSAVE
        xor     edx, edx
        wrmsr
        REPORT

        STEP    vmcb
        call    write_vmcb
        REPORT

        STEP    run_asid_0
        mov     dword ptr [VMCB + ASID], 0
        ENTER
        REPORT
        mov     dword ptr [VMCB + ASID], 1

        STEP    run_no_intercept
        and     dword ptr [VMCB + INTERCEPTS + 4], ~INTERCEPT_VMRUN
        ENTER
        REPORT
        or      dword ptr [VMCB + INTERCEPTS + 4], INTERCEPT_VMRUN

        STEP    run_no_svme
        and     dword ptr [VMCB + STATE_EFER], ~EFER_SVME
        ENTER
        REPORT
        or      dword ptr [VMCB + STATE_EFER], EFER_SVME

        STEP    run
        ENTER
        mov     ebx, 0                  // not a fault: L2's
        REPORT
        cmp     rsi, EXIT_CPUID
        jne     leave

// L2 asked CPUID: L1 decides what it sees.
        add     qword ptr [VMCB + STATE_RIP], CPUID_LENGTH
        STEP    run_again
        mov     ebx, 0x706d766b         // "kvmp"
        mov     ecx, 0x6f742079         // "y to"
        mov     edx, 0x21324c20         // " L2!"
        ENTER
        mov     ebx, 0
        REPORT

        add     qword ptr [VMCB + STATE_RIP], VMMCALL_LENGTH
        STEP    run_hlt
        ENTER
        mov     ebx, 0
        REPORT
        add     qword ptr [VMCB + STATE_RIP], HLT_LENGTH

        STEP    trips
        mov     r12d, TRIPS
1:      ENTER
        cmp     rsi, EXIT_CPUID
        jne     2f
        add     qword ptr [VMCB + STATE_RIP], CPUID_LENGTH
        dec     r12d
        jnz     1b
2:      mov     ebx, 0
        REPORT

leave:
        STEP    stgi
        stgi                            // each exit of L2 leaves the global interrupt flag at 0
        REPORT

        STEP    svme_off
        mov     ecx, MSR_EFER
        rdmsr
        and     eax, ~EFER_SVME
        wrmsr
        REPORT

        STEP    vmrun_late
        mov     eax, VMCB
        vmrun
        REPORT

        FINISH_AND_L2 vmmcall, L2_SAW

// ---- The VMCB ---------------------------------------------------------------
.macro SEGMENT at, selector, attributes
        mov     dword ptr [VMCB + \at], \selector | \attributes << 16
        mov     dword ptr [VMCB + \at + 4], -1
        mov     qword ptr [VMCB + \at + 8], 0
.endm

write_vmcb:
        mov     eax, VMCB
        vmsave                          // FS GS TR LDTR, SYSCALL's and SYSENTER's MSRs
        SEGMENT STATE_ES, 0x18, FLAT_DATA
        SEGMENT STATE_CS, 0x10, FLAT_CODE64
        SEGMENT STATE_SS, 0x18, FLAT_DATA
        SEGMENT STATE_DS, 0x18, FLAT_DATA

        sub     rsp, 16
        sgdt    [rsp]
        movzx   eax, word ptr [rsp]
        mov     [VMCB + STATE_GDTR + 4], eax
        mov     rax, [rsp + 2]
        mov     [VMCB + STATE_GDTR + 8], rax
        sidt    [rsp]
        movzx   eax, word ptr [rsp]
        mov     [VMCB + STATE_IDTR + 4], eax
        mov     rax, [rsp + 2]
        mov     [VMCB + STATE_IDTR + 8], rax
        add     rsp, 16

        mov     rax, cr0
        mov     [VMCB + STATE_CR0], rax
        mov     rax, cr3
        mov     [VMCB + STATE_CR3], rax
        mov     rax, cr4
        mov     [VMCB + STATE_CR4], rax
        mov     rax, dr6
        mov     [VMCB + STATE_DR6], rax
        mov     rax, dr7
        mov     [VMCB + STATE_DR7], rax
        mov     ecx, MSR_EFER
        rdmsr
        mov     [VMCB + STATE_EFER], eax
        mov     ecx, MSR_PAT
        rdmsr
        mov     [VMCB + STATE_PAT], eax
        mov     [VMCB + STATE_PAT + 4], edx

        mov     qword ptr [VMCB + STATE_RFLAGS], 2
        lea     rax, [rip + l2]
        mov     [VMCB + STATE_RIP], rax
        mov     qword ptr [VMCB + STATE_RSP], L2_STACK
        mov     dword ptr [VMCB + INTERCEPTS], INTERCEPT_CPUID | INTERCEPT_HLT
        mov     dword ptr [VMCB + INTERCEPTS + 4], INTERCEPT_VMRUN | INTERCEPT_VMMCALL
        mov     dword ptr [VMCB + ASID], 1
        ret
