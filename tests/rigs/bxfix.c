/*
 * bxfix - make Debian's Bochs 2.7 run kvm_intel correctly, and faster.  Loaded with LD_PRELOAD.
 *
 * Everything is found by symbol name in the running bochs-bin, which exports its symbols for its
 * plugins.  When something essential is not there, Bochs ends with status 99 instead of running with
 * the bug: a wrong emulator must not decide what passes.
 *
 * Source for the rules: Intel SDM volume 3, chapters "VM Entries" and "VM Exits".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE_SIZE 4096ul
#define EXIT_NOT_APPLICABLE 99

/* VMCS field encodings (SDM, "Field Encoding in VMCS"). */
#define VMCS_EXIT_REASON 0x4402
#define VMCS_GUEST_INTERRUPTIBILITY 0x4824
#define VMCS_GUEST_PENDING_DEBUG 0x6822

#define PENDING_DEBUG_BS (1ul << 14)
#define BLOCKED_BY_STI_OR_MOV_SS 3u

/* Member functions of Bochs's BX_CPU_C; `cpu` is their `this`. */
typedef void opcode_handler(void *cpu, void *instruction);
static opcode_handler *vmlaunch;
static void (*handle_interrupt_mask_change)(void *cpu);
static unsigned (*vmread32)(void *cpu, unsigned field);
static unsigned long (*vmread64)(void *cpu, unsigned field);
static void (*vmwrite64)(void *cpu, unsigned field, unsigned long value);

static _Noreturn void give_up(const char *what)
{
	fprintf(stderr, "bxfix: %s: this is not the Bochs 2.7 that the VMX rig knows\n", what);
	_exit(EXIT_NOT_APPLICABLE);
}

/* A symbol of bochs-bin that the fixes cannot do without. */
static void *essential(const char *name)
{
	void *address = dlsym(RTLD_DEFAULT, name);

	if (!address)
		give_up(name);
	return address;
}

/* Exits caused by an instruction that has not completed, and so has no single-step trap due. */
static int is_fault_like(unsigned reason)
{
	switch (reason) {
	case 10: /* CPUID */
	case 12: /* HLT */
	case 18: /* VMCALL */
	case 28: /* control-register access */
	case 30: /* I/O instruction */
	case 31: /* RDMSR */
	case 32: /* WRMSR */
	case 48: /* EPT violation */
	case 49: /* EPT misconfiguration */
		return 1;
	default:
		return 0;
	}
}

/*
 * Bug 1: Bochs saves a single-step trap (BS) as pending on every VM exit with TF set, whereas a
 * fault-like exit clears the field.  The next VM entry then delivers a #DB one instruction early.
 * (Fixed upstream in 2.8.)  Where STI or MOV SS blocks, VM entry demands BS: leave it alone.
 */
static void drop_premature_single_step(void *cpu)
{
	unsigned long pending = vmread64(cpu, VMCS_GUEST_PENDING_DEBUG);

	if (!(pending & PENDING_DEBUG_BS))
		return;
	if (vmread32(cpu, VMCS_GUEST_INTERRUPTIBILITY) & BLOCKED_BY_STI_OR_MOV_SS)
		return;
	if (is_fault_like(vmread32(cpu, VMCS_EXIT_REASON) & 0xffff))
		vmwrite64(cpu, VMCS_GUEST_PENDING_DEBUG, pending & ~PENDING_DEBUG_BS);
}

/*
 * VMLAUNCH and VMRESUME.
 *
 * Bug 2: with "external-interrupt exiting", a guest's IF does not mask the host's interrupts.  Bochs
 * knows that, but works out the mask while it loads RFLAGS, when it does not yet count itself as in
 * the guest.  So a guest that enters with IF = 0 and spins can never be kicked.  Work it out again.
 */
static void enter_guest(void *cpu, void *instruction)
{
	drop_premature_single_step(cpu);
	vmlaunch(cpu, instruction);
	handle_interrupt_mask_change(cpu);
}

static void make_writable(void *start, size_t size, int protection)
{
	uintptr_t first = (uintptr_t)start & ~(PAGE_SIZE - 1);
	uintptr_t end = ((uintptr_t)start + size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);

	if (mprotect((void *)first, end - first, protection)) {
		perror("bxfix: mprotect");
		_exit(EXIT_NOT_APPLICABLE);
	}
}

/* Bochs calls its opcode handlers through a table: put ours in VMLAUNCH's and VMRESUME's places. */
static void replace_opcode_handler(void)
{
	void **table = essential("BxOpcodesTable");
	ElfW(Sym) *symbol = NULL;
	Dl_info info;
	int replaced = 0;

	if (!dladdr1(table, &info, (void **)&symbol, RTLD_DL_SYMENT) || !symbol)
		give_up("BxOpcodesTable has no size");
	make_writable(table, symbol->st_size, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < symbol->st_size / sizeof(*table); i++) {
		if (table[i] == (void *)vmlaunch) {
			table[i] = (void *)enter_guest;
			replaced++;
		}
	}
	if (!replaced)
		give_up("VMLAUNCH is not in BxOpcodesTable");
}

/*
 * Debian builds Bochs with its debugger, which calls hooks on every instruction and memory access.
 * We set no breakpoint: hooks that return at once save about a quarter of the run time.
 */
static void silence_debugger_hook(const char *name, const unsigned char *code, size_t size)
{
	void *function = dlsym(RTLD_DEFAULT, name);

	if (!function) /* only slower */
		return;
	make_writable(function, size, PROT_READ | PROT_WRITE | PROT_EXEC);
	memcpy(function, code, size);
	make_writable(function, size, PROT_READ | PROT_EXEC);
}

static void silence_debugger(void)
{
	static const unsigned char ret[] = {0xc3};
	static const unsigned char ret_false[] = {0x31, 0xc0, 0xc3}; /* xor eax, eax; ret */

	silence_debugger_hook("_ZN8BX_CPU_C22dbg_instruction_epilogEv", ret_false, sizeof(ret_false));
	silence_debugger_hook("_Z24bx_dbg_lin_memory_accessjmmjjjPh", ret, sizeof(ret));
	silence_debugger_hook("_Z31bx_dbg_check_memory_watchpointsjmjj", ret, sizeof(ret));
}

/*
 * Bug 3: Bochs maps guest memory to host memory in blocks of 128 KiB, in the order of first use, but
 * reads an optramimage as if it were contiguous from its first block on.  It does accept short reads
 * and then maps the next address, so no read may cross the end of a block.  Images must start on a
 * block boundary, or fit into one block.
 */
ssize_t read(int descriptor, void *buffer, size_t size)
{
	static ssize_t (*next_read)(int, void *, size_t);
	const size_t block = 128 * 1024;

	if (!next_read)
		*(void **)&next_read = dlsym(RTLD_NEXT, "read");
	return next_read(descriptor, buffer, size < block ? size : block);
}

__attribute__((constructor)) static void patch_bochs(void)
{
	*(void **)&vmlaunch = essential("_ZN8BX_CPU_C8VMLAUNCHEP15bxInstruction_c");
	*(void **)&handle_interrupt_mask_change =
		essential("_ZN8BX_CPU_C25handleInterruptMaskChangeEv");
	*(void **)&vmread32 = essential("_ZN8BX_CPU_C8VMread32Ej");
	*(void **)&vmread64 = essential("_ZN8BX_CPU_C8VMread64Ej");
	*(void **)&vmwrite64 = essential("_ZN8BX_CPU_C9VMwrite64Ejm");
	replace_opcode_handler();
	silence_debugger();
}
