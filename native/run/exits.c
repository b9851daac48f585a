/*
 * kvm_run's union, laid flat: one row of words per exit reason, in the order in which
 * kvmpy/exits.py names them. The compiler knows the union's layout; Python need not.
 */
#include <string.h>

#include "shim.h"

/* Since 6.8, and so not in every header: three words at the start of the union. */
static unsigned memory_fault(const struct kvm_run *run, uint64_t *words)
{
	memcpy(words, &run->hw, 3 * sizeof(*words));
	return 3;
}

static unsigned internal_error(const struct kvm_run *run, uint64_t *words)
{
	unsigned n = run->internal.ndata;

	if (n > sizeof(run->internal.data) / sizeof(run->internal.data[0]))
		n = sizeof(run->internal.data) / sizeof(run->internal.data[0]);
	words[0] = run->internal.suberror;
	for (unsigned i = 0; i < n; i++)
		words[1 + i] = run->internal.data[i];
	return 1 + n;
}

static unsigned system_event(const struct kvm_run *run, uint64_t *words)
{
	unsigned n = run->system_event.ndata;

	if (n > sizeof(run->system_event.data) / sizeof(run->system_event.data[0]))
		n = sizeof(run->system_event.data) / sizeof(run->system_event.data[0]);
	words[0] = run->system_event.type;
	for (unsigned i = 0; i < n; i++)
		words[1 + i] = run->system_event.data[i];
	return 1 + n;
}

static unsigned hypercall(const struct kvm_run *run, uint64_t *words)
{
	words[0] = run->hypercall.nr;
	for (unsigned i = 0; i < 6; i++)
		words[1 + i] = run->hypercall.args[i];
	words[7] = run->hypercall.longmode & 1; /* since 6.4 bit 0 of flags, which lie there */
	return 8;
}

static unsigned hyperv(const struct kvm_run *run, uint64_t *words)
{
	const struct kvm_hyperv_exit *exit = &run->hyperv;

	words[0] = exit->type;
	switch (exit->type) {
	case KVM_EXIT_HYPERV_SYNIC:
		words[1] = exit->u.synic.msr;
		words[2] = exit->u.synic.control;
		words[3] = exit->u.synic.evt_page;
		words[4] = exit->u.synic.msg_page;
		return 5;
	case KVM_EXIT_HYPERV_HCALL:
		words[1] = exit->u.hcall.input;
		words[2] = exit->u.hcall.params[0];
		words[3] = exit->u.hcall.params[1];
		return 4;
	case KVM_EXIT_HYPERV_SYNDBG:
		words[1] = exit->u.syndbg.msr;
		words[2] = exit->u.syndbg.control;
		words[3] = exit->u.syndbg.status;
		words[4] = exit->u.syndbg.send_page;
		words[5] = exit->u.syndbg.recv_page;
		words[6] = exit->u.syndbg.pending_page;
		return 7;
	default:
		return 1;
	}
}

static unsigned xen(const struct kvm_run *run, uint64_t *words)
{
	words[0] = run->xen.type;
	if (run->xen.type != KVM_EXIT_XEN_HCALL)
		return 1;
	words[1] = run->xen.u.hcall.longmode;
	words[2] = run->xen.u.hcall.cpl;
	words[3] = run->xen.u.hcall.input;
	for (unsigned i = 0; i < 6; i++)
		words[4 + i] = run->xen.u.hcall.params[i];
	return 10;
}

/* Since 6.16: flags, number, the answer, five words of parameters. */
static unsigned tdx(const struct kvm_run *run, uint64_t *words)
{
	memcpy(words, &run->hw, 8 * sizeof(*words));
	return 8;
}

/* The exit in kvm_run: words[0] is the reason; returns how many words were filled, at most
 * SHIM_DECODE_WORDS. */
unsigned shim_decode(const struct shim_vcpu *vcpu, uint64_t *words)
{
	const struct kvm_run *run = vcpu->run;

	*words++ = run->exit_reason;
	switch (run->exit_reason) {
	case KVM_EXIT_UNKNOWN:
		words[0] = run->hw.hardware_exit_reason;
		return 2;
	case KVM_EXIT_EXCEPTION:
		words[0] = run->ex.exception;
		words[1] = run->ex.error_code;
		return 3;
	case KVM_EXIT_IO:
		words[0] = run->io.direction == KVM_EXIT_IO_OUT;
		words[1] = run->io.port;
		words[2] = run->io.size;
		words[3] = run->io.count;
		words[4] = run->io.data_offset;
		return 6;
	case KVM_EXIT_MMIO:
		words[0] = run->mmio.is_write;
		words[1] = run->mmio.phys_addr;
		words[2] = run->mmio.len;
		memcpy(&words[3], run->mmio.data, sizeof(words[3]));
		return 5;
	case KVM_EXIT_DEBUG:
		words[0] = run->debug.arch.exception;
		words[1] = run->debug.arch.pc;
		words[2] = run->debug.arch.dr6;
		words[3] = run->debug.arch.dr7;
		return 5;
	case KVM_EXIT_FAIL_ENTRY:
		words[0] = run->fail_entry.hardware_entry_failure_reason;
		words[1] = run->fail_entry.cpu;
		return 3;
	case KVM_EXIT_TPR_ACCESS:
		words[0] = run->tpr_access.rip;
		words[1] = run->tpr_access.is_write;
		return 3;
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR:
		words[0] = run->msr.index;
		words[1] = run->msr.data;
		words[2] = run->msr.reason;
		return 4;
	case KVM_EXIT_IOAPIC_EOI:
		words[0] = run->eoi.vector;
		return 2;
	case KVM_EXIT_NOTIFY:
		words[0] = run->notify.flags;
		return 2;
	case KVM_EXIT_HYPERCALL:
		return 1 + hypercall(run, words);
	case KVM_EXIT_HYPERV:
		return 1 + hyperv(run, words);
	case KVM_EXIT_XEN:
		return 1 + xen(run, words);
	case KVM_EXIT_TDX:
		return 1 + tdx(run, words);
	case KVM_EXIT_INTERNAL_ERROR:
		return 1 + internal_error(run, words);
	case KVM_EXIT_SYSTEM_EVENT:
		return 1 + system_event(run, words);
	case KVM_EXIT_MEMORY_FAULT:
		return 1 + memory_fault(run, words);
	default:
		return 1;
	}
}
