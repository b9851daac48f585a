// demo.S - the bundled demo kernel.
//
// Ring 0 greets over the serial port and sets up what a kernel needs to have a
// ring 3 at all: page tables, GDT, TSS, IDT and the system-call MSRs. Ring 3
// then tries every way into ring 0 (demo-tries.inc), and ring 0 reports for
// each whether it arrived, at which CPL, or which exception came instead.
// It powers off with status 0; with 1 if ring 0 itself takes an exception.
//
// Entry: a static ELF64 at 1 MiB, entered at _start in 64-bit mode, CPL 0,
// interrupts off, the low 2 MiB identity-mapped. No register is assumed, and
// no stack. Fits in 2 MiB of RAM.
//
// It is also meant for a ring 0 that is *interpreted* (kvm_pvm: about 0.6 us an
// instruction, no INT n, no SSE), so ring 0 uses plain integer instructions.

        .intel_syntax noprefix
#include "serial.inc"
#include "x86.inc"
#include "demo-tries.inc"

#define ENTRY_WIDTH     14              // of the report's fourth column
#define CPL_FROM        9               // offsets of the digits in arrived_text
#define CPL_TO          14

        .text
        .globl  _start
_start:
        cld
        mov     rsp, offset kernel_stack_top
        call    serial_init
        call    greet
        call    load_page_tables
        call    load_gdt_and_tss
        call    load_idt
        call    set_system_call_msrs
        PRINT   "Ring 3 tries every way into ring 0, and ring 0 reports:", EOL, EOL
        PRINT   "  ring 3 runs   outcome  CPL     entry         meaning", EOL
        PRINT   "  ------------  -------  ------  ------------  ------------------------------", EOL
        mov     qword ptr [current], offset tries_start
// fall through

// ---- The loop: down to ring 3, and back by whatever way it found ------------

run_next_try:
        mov     rbx, [current]
        cmp     rbx, offset tries_end
        je      finish
        mov     rsi, [rbx + TRY_NAME]   // before the try: if the guest dies in
        call    serial_puts             // it, the last line says where
        movzx   eax, word ptr [rbx + TRY_CS]
        push    USER_DS                 // SS
        push    offset user_stack_top   // RSP
        push    FLAGS_NONE              // RFLAGS
        push    rax                     // CS: RPL 3 makes IRETQ leave ring 0
        push    qword ptr [rbx + TRY_RIP]
        iretq

// Every entry point ends here. EAX: which entry; EDX: error code; RSI: RIP of
// ring 3; EDI: CPL left. The ring-3 context is not saved, for none is resumed:
// each try starts afresh.
came_back:
        mov     rsp, offset kernel_stack_top
        cld
        mov     [seen_entry], eax
        mov     [seen_error], edx
        mov     [seen_rip], rsi
        mov     ecx, cs                 // the CPL now is the RPL of CS
        and     ecx, 3
        add     ecx, '0'
        mov     [arrived_text + CPL_TO], cl
        add     edi, '0'
        mov     [arrived_text + CPL_FROM], dil
        call    report
        add     qword ptr [current], TRY_SIZE
        jmp     run_next_try

finish:
        PRINT   EOL, "All tries came back: "
        mov     eax, [count_arrived]
        call    print_decimal
        PRINT   " arrived, "
        mov     eax, [count_refused]
        call    print_decimal
        PRINT   " refused"
        mov     eax, [count_other]
        test    eax, eax
        jz      1f
        PRINT   ", "
        mov     eax, [count_other]
        call    print_decimal
        PRINT   " other"
1:      PRINT   ". Powering off, status 0.", EOL
        POWER_OFF 0

// ---- Entry points of ring 0 -------------------------------------------------

// One stub per vector, 16 bytes each so that the IDT can be filled by a loop.
// A zero stands in for the error code where the CPU pushes none.
.macro STUB vector, error_code
        .balign 16
        .if     \error_code == 0
        push    0
        .endif
        push    \vector
        jmp     vector_entry
.endm

        .balign 16
vector_stubs:
        .set    v, 0
        .rept   EXCEPTIONS
        STUB    v, (HAS_ERROR_CODE >> v) & 1
        .set    v, v + 1
        .endr
stub_80:
        STUB    0x80, 0

// On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
vector_entry:
        pop     rax
        pop     rdx
        pop     rsi
        pop     rdi
        and     edi, 3                  // RPL of the saved CS: the CPL before
        jz      panic                   // ring 0 itself, or #DF, must not fault
        cmp     eax, VEC_DF
        jne     came_back
        jmp     panic

// SYSCALL: RIP of ring 3 in RCX; RSP is still the one of ring 3.
syscall_entry:
        mov     eax, ENTRY_LSTAR
        jmp     fast_entry
syscall32_entry:
        mov     eax, ENTRY_CSTAR
        jmp     fast_entry
// SYSENTER saves nothing: RSP and RIP are from the MSRs.
sysenter_entry:
        mov     eax, ENTRY_SYSENTER
        jmp     fast_entry
// Call gate: stack from the TSS; SS, RSP, CS, RIP pushed.
call_gate_entry:
        mov     eax, ENTRY_CALL_GATE
fast_entry:
        xor     edx, edx
        mov     rsi, rcx
        mov     edi, 3
        jmp     came_back

// ---- The report ------------------------------------------------------------

// Prints the rest of the row: outcome, CPL, entry and what it means.
report:
        mov     rbx, [current]
        mov     eax, [seen_entry]
        cmp     eax, VEC_UD
        jne     1f
        mov     rcx, [seen_rip]
        cmp     rcx, [rbx + TRY_END]
        je      report_ignored
1:      cmp     ax, [rbx + TRY_GOAL]
        je      report_arrived
        cmp     eax, VEC_PF
        jne     report_refused
        cmp     word ptr [rbx + TRY_GOAL], ENTRY_LSTAR
        jne     report_refused
        mov     ecx, offset syscall_entry
        cmp     [seen_rip], rcx
        je      report_halfway
// fall through

report_refused:
        inc     dword ptr [count_refused]
        PRINT   "refused  -       "
        call    print_entry
        call    expected_refusal
        mov     rsi, [rbx + TRY_NO]
        cmp     al, [seen_entry]
        jne     report_unlike
        jmp     end_row

report_arrived:
        inc     dword ptr [count_arrived]
        mov     esi, offset arrived_text
        call    serial_puts
        call    print_entry
        call    expected_refusal
        mov     rsi, [rbx + TRY_YES]
        cmp     al, NONE
        je      end_row
// fall through

// By the vendor's manual this try ends otherwise: a gap of the KVM module, or of
// the emulator below it.
report_unlike:
        mov     esi, offset text_unlike
        jmp     end_row

// SYSCALL went to LSTAR, but still at CPL 3: the fetch from that supervisor
// page then faulted. A gap that kvm_pvm has.
report_halfway:
        inc     dword ptr [count_other]
        PRINT   "halfway  3 -> 3  LSTAR         "
        mov     esi, offset text_halfway
        jmp     end_row

report_ignored:
        inc     dword ptr [count_other]
        PRINT   "ignored  3 -> 3  -             "
        mov     esi, offset text_ignored
// fall through

end_row:
        call    serial_puts
        PRINT   EOL
        ret

// Returns in AL the exception by which a CPU of this vendor refuses the try, or
// NONE. Clobbers ECX.
expected_refusal:
        mov     ecx, [is_amd]
        mov     al, [rbx + TRY_REFUSAL + rcx]
        ret

// Prints the entry column: "vector 128", "#GP(0x72)", "LSTAR" ...
print_entry:
        mov     eax, [seen_entry]
        mov     esi, offset entry_names
        sub     eax, ENTRY_LSTAR
        jae     1f
        mov     esi, offset text_int80
        cmp     eax, 0x80 - ENTRY_LSTAR
        je      2f
        call    format_exception
        mov     esi, offset entry_field
        jmp     2f
1:      shl     eax, 4                  // 16 bytes a name
        add     esi, eax
2:      jmp     serial_puts

// Writes the name of exception [seen_entry] into entry_field, with the error
// code where it has one, and blanks up to the width of the column.
format_exception:
        mov     edi, offset entry_field
        mov     al, ' '
        mov     ecx, ENTRY_WIDTH
        rep stosb
        mov     edi, offset entry_field
        mov     ecx, [seen_entry]
        mov     eax, [exception_names + rcx * 4]
        stosd
        dec     edi                     // over the fourth character, a blank
        mov     eax, HAS_ERROR_CODE
        bt      eax, ecx
        jnc     1f
        mov     al, '('
        stosb
        mov     eax, [seen_error]
        call    format_hex
        mov     al, ')'
        stosb
1:      ret

// Writes EAX in hexadecimal at RDI, without leading zeros; a single decimal
// digit goes without "0x" as well.
format_hex:
        cmp     eax, 10
        jb      1f
        mov     word ptr [rdi], 'x' << 8 | '0'
        add     edi, 2
1:      mov     edx, eax
        or      edx, 1
        bsr     ecx, edx
        and     ecx, ~3                 // the shift that brings down digit one
2:      mov     edx, eax
        shr     edx, cl
        and     edx, 15
        mov     dl, [digits + rdx]
        mov     [rdi], dl
        inc     edi
        sub     ecx, 4
        jns     2b
        ret

// Prints EAX, 0..99.
print_decimal:
        mov     edi, offset entry_field
        xor     edx, edx
        mov     ecx, 10
        div     ecx
        test    eax, eax
        jz      1f
        add     al, '0'
        stosb
1:      lea     eax, [rdx + '0']
        stosw                           // the digit and the closing zero
        mov     esi, offset entry_field
        jmp     serial_puts

// An exception out of ring 0, or #DF: a bug here or in the hypervisor.
// EAX: vector; EDX: error code; RSI: RIP.
panic:
        mov     rsp, offset panic_stack_top
        inc     dword ptr [panics]
        cmp     dword ptr [panics], 1
        jne     2f                      // one in the report itself: just leave
        mov     [seen_entry], eax
        mov     [seen_error], edx
        mov     [seen_rip], rsi
        PRINT   EOL, "Unexpected exception in ring 0: "
        call    print_entry
        PRINT   "RIP 0x"
        mov     rax, [seen_rip]
        call    print_hex64
        PRINT   "  CR2 0x"
        mov     rax, cr2
        call    print_hex64
        PRINT   EOL, "Powering off, status 1.", EOL
2:      POWER_OFF 1

// Prints RAX as sixteen hexadecimal digits.
print_hex64:
        push    rax
        shr     rax, 32
        call    serial_hex
        pop     rax
        jmp     serial_hex

        SERIAL_FUNCTIONS

#include "demo-setup.inc"

// ---- Data ------------------------------------------------------------------

        .section .rodata
entry_names:                            // by ENTRY_*: a column, 16 bytes each
        .ascii  "LSTAR         \0\0"
        .ascii  "CSTAR         \0\0"
        .ascii  "SYSENTER_EIP  \0\0"
        .ascii  "call gate     \0\0"
text_int80:
        .asciz  "vector 128    "
exception_names:                        // four characters each
        .ascii  "#DE #DB NMI #BP #OF #BR #UD #NM #DF #CO #TS #NP #SS #GP #PF #15 "
        .ascii  "#MF #AC #MC #XM #VE #CP #22 #23 #24 #25 #26 #27 #HV #VC #SX #31 "
digits: .ascii  "0123456789abcdef"
text_unlike:
        .asciz  "not what a real CPU does"
text_halfway:
        .asciz  "jumps there, but CPL stays 3"
text_ignored:
        .asciz  "nothing happened at all"

        .section .rodata.tries, "a"
tries_end:

        .data
arrived_text:
        .asciz  "arrived  3 -> 0  "

        .bss
        .balign 8
current:        .skip 8                 // the row of the try under way
seen_rip:       .skip 8                 // how ring 0 was entered
seen_entry:     .skip 4
seen_error:     .skip 4
is_amd:         .skip 4                 // 1: AMD rules for SYSENTER and SYSCALL
count_arrived:  .skip 4
count_refused:  .skip 4
count_other:    .skip 4
panics:         .skip 4
entry_field:    .skip ENTRY_WIDTH + 2
