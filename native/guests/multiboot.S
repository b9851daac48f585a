// multiboot.S - a Multiboot 1 kernel that shows what its loader handed over.
//
// Entry: 32-bit protected mode, flat segments, no paging, interrupts off; EAX
// holds the magic number and EBX the address of the information structure. No
// stack, GDT or IDT is assumed. Prints on COM1: magic and flags, the loader's
// name, the command line, the memory map and every module. Exit status 0; 1 if
// the magic number is wrong.
//
// Source: Multiboot Specification version 0.6.96.

        .intel_syntax noprefix
        .code32
#include "serial.inc"

#define HEADER_MAGIC    0x1badb002
#define HEADER_FLAGS    0x3             // modules on pages; memory information
#define LOADER_MAGIC    0x2badb002

#define INFO_FLAGS      0
#define INFO_CMDLINE    16
#define INFO_MODS_COUNT 20
#define INFO_MODS_ADDR  24
#define INFO_MMAP_LENGTH 44
#define INFO_MMAP_ADDR  48
#define INFO_LOADER     64
#define HAS_CMDLINE     (1 << 2)
#define HAS_MODS        (1 << 3)
#define HAS_MMAP        (1 << 6)
#define HAS_LOADER      (1 << 9)

#define MODULE_START    0
#define MODULE_END      4
#define MODULE_STRING   8
#define MODULE_SIZE     16

#define MMAP_SIZE       0               // of the entry, this field not counted
#define MMAP_BASE       4
#define MMAP_LENGTH     12
#define MMAP_TYPE       20

        .section .header, "a"           // within the first 8 KiB of the file
        .balign 4
        .long   HEADER_MAGIC, HEADER_FLAGS, -(HEADER_MAGIC + HEADER_FLAGS)

        .text
        .globl  _start
_start:
        cld
        mov     esp, offset stack_top
        mov     ebp, ebx                // EBP: the information, to the end
        push    eax
        call    serial_init
        PRINT   "Multiboot kernel: magic 0x"
        mov     eax, [esp]
        call    serial_hex
        pop     eax
        cmp     eax, LOADER_MAGIC
        je      1f
        PRINT   " is not 0x2badb002", EOL
        POWER_OFF 1
1:      PRINT   ", flags 0x"
        mov     eax, [ebp + INFO_FLAGS]
        call    serial_hex
        PRINT   EOL
        call    print_strings
        call    print_memory_map
        call    print_modules
        POWER_OFF 0

// Prints the loader's name and the command line, where given.
print_strings:
        test    dword ptr [ebp + INFO_FLAGS], HAS_LOADER
        jz      1f
        PRINT   "loader: "
        mov     esi, [ebp + INFO_LOADER]
        call    serial_puts
        PRINT   EOL
1:      test    dword ptr [ebp + INFO_FLAGS], HAS_CMDLINE
        jz      2f
        PRINT   "command line: "
        mov     esi, [ebp + INFO_CMDLINE]
        call    serial_puts
        PRINT   EOL
2:      ret

// Prints one line per entry: base, length, type (1: RAM).
print_memory_map:
        test    dword ptr [ebp + INFO_FLAGS], HAS_MMAP
        jz      2f
        mov     edi, [ebp + INFO_MMAP_ADDR]
1:      mov     eax, edi
        sub     eax, [ebp + INFO_MMAP_ADDR]
        cmp     eax, [ebp + INFO_MMAP_LENGTH]
        jae     2f
        PRINT   "memory: base 0x"
        mov     eax, [edi + MMAP_BASE + 4]
        call    serial_hex
        mov     eax, [edi + MMAP_BASE]
        call    serial_hex
        PRINT   " length 0x"
        mov     eax, [edi + MMAP_LENGTH + 4]
        call    serial_hex
        mov     eax, [edi + MMAP_LENGTH]
        call    serial_hex
        PRINT   " type "
        call    serial_wait
        mov     eax, [edi + MMAP_TYPE]
        add     al, '0'
        out     dx, al
        PRINT   EOL
        mov     eax, [edi + MMAP_SIZE]
        lea     edi, [edi + eax + 4]
        jmp     1b
2:      ret

// Prints address range, string and contents of each module.
print_modules:
        test    dword ptr [ebp + INFO_FLAGS], HAS_MODS
        jz      3f
        mov     edi, [ebp + INFO_MODS_ADDR]
        push    dword ptr [ebp + INFO_MODS_COUNT]
1:      dec     dword ptr [esp]
        js      2f
        call    print_module
        add     edi, MODULE_SIZE
        jmp     1b
2:      pop     eax
3:      ret

// Prints the module whose entry is at EDI.
print_module:
        PRINT   "module: 0x"
        mov     eax, [edi + MODULE_START]
        call    serial_hex
        PRINT   "-0x"
        mov     eax, [edi + MODULE_END]
        call    serial_hex
        PRINT   " '"
        mov     esi, [edi + MODULE_STRING]
        call    serial_puts
        PRINT   "':", EOL
        mov     esi, [edi + MODULE_START]
1:      cmp     esi, [edi + MODULE_END]
        jae     2f
        call    serial_wait
        lodsb
        out     dx, al
        jmp     1b
2:      PRINT   EOL
        ret

        SERIAL_FUNCTIONS

        .bss
        .balign 16
        .skip   1024
stack_top:
