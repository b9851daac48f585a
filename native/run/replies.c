/*
 * Exits that KVM finishes with an answer from user space, and that are no port or MMIO access:
 * MSRs, hypercalls of KVM's own, Xen's, Hyper-V's and TDX's kind (KVM API, "5. The kvm_run
 * structure").
 *
 * Each is given an answer before anyone looks at it, the one KVM itself has for what it does not
 * know; so an exit that nobody answers gives the guest no leftover of an earlier one.
 */
#include <errno.h>
#include <linux/kvm_para.h>
#include <string.h>

#include "shim.h"

#define HV_STATUS_INVALID_HYPERCALL_CODE 2 /* Hyper-V TLFS, "Hypercall Status Codes" */

/* Since 6.16, and so not in every header: flags, number, answer and five words of parameters. */
static uint64_t *tdx_words(struct kvm_run *run)
{
	return (uint64_t *)&run->hw;
}

/* Where the answer goes; NULL for an exit that takes none. */
static uint64_t *answer_of(struct kvm_run *run)
{
	switch (run->exit_reason) {
	case KVM_EXIT_X86_RDMSR:
		return (uint64_t *)&run->msr.data;
	case KVM_EXIT_HYPERCALL:
		return (uint64_t *)&run->hypercall.ret;
	case KVM_EXIT_XEN:
		return run->xen.type == KVM_EXIT_XEN_HCALL ? (uint64_t *)&run->xen.u.hcall.result
							   : NULL;
	case KVM_EXIT_HYPERV:
		if (run->hyperv.type == KVM_EXIT_HYPERV_HCALL)
			return (uint64_t *)&run->hyperv.u.hcall.result;
		if (run->hyperv.type == KVM_EXIT_HYPERV_SYNDBG)
			return (uint64_t *)&run->hyperv.u.syndbg.status;
		return NULL;
	case KVM_EXIT_TDX:
		return tdx_words(run) + 2;
	default:
		return NULL;
	}
}

/* A fresh exit: put the answer for "nobody answers" in. */
enum shim_pending shim_reply_begin(struct kvm_run *run)
{
	switch (run->exit_reason) {
	case KVM_EXIT_X86_RDMSR: /* #GP, as if user space had not been asked */
		run->msr.error = 1;
		return SHIM_PENDING_REPLY;
	case KVM_EXIT_X86_WRMSR: /* done, as an unclaimed port write is */
		run->msr.error = 0;
		return SHIM_PENDING_REPLY;
	case KVM_EXIT_HYPERCALL:
		run->hypercall.ret = -(uint64_t)KVM_ENOSYS;
		return SHIM_PENDING_REPLY;
	case KVM_EXIT_XEN:
		if (run->xen.type != KVM_EXIT_XEN_HCALL)
			return SHIM_PENDING_NONE;
		run->xen.u.hcall.result = -(uint64_t)ENOSYS;
		return SHIM_PENDING_REPLY;
	case KVM_EXIT_HYPERV:
		if (run->hyperv.type == KVM_EXIT_HYPERV_HCALL)
			run->hyperv.u.hcall.result = HV_STATUS_INVALID_HYPERCALL_CODE;
		return answer_of(run) ? SHIM_PENDING_REPLY : SHIM_PENDING_NONE;
	case KVM_EXIT_TDX: /* KVM has put "unsupported" there */
		return SHIM_PENDING_REPLY;
	default:
		return SHIM_PENDING_NONE;
	}
}

/* The guest gets `value`; a write to an MSR is done, whatever the value. -EINVAL: the last exit
 * takes no answer, or has had it. */
int shim_reply(struct shim_vcpu *vcpu, uint64_t value)
{
	struct kvm_run *run = vcpu->run;
	uint64_t *answer = answer_of(run);
	bool is_wrmsr = run->exit_reason == KVM_EXIT_X86_WRMSR;

	if (vcpu->pending != SHIM_PENDING_REPLY || (!answer && !is_wrmsr))
		return -EINVAL;
	if (answer)
		*answer = value;
	if (is_wrmsr || run->exit_reason == KVM_EXIT_X86_RDMSR)
		run->msr.error = 0;
	vcpu->pending = SHIM_PENDING_COMPLETE;
	return 0;
}

/* An access to an MSR becomes #GP; anything else keeps the answer for what is not known. */
int shim_refuse(struct shim_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	bool is_wrmsr = run->exit_reason == KVM_EXIT_X86_WRMSR;

	if (vcpu->pending != SHIM_PENDING_REPLY || (!answer_of(run) && !is_wrmsr))
		return -EINVAL;
	if (is_wrmsr || run->exit_reason == KVM_EXIT_X86_RDMSR)
		run->msr.error = 1;
	vcpu->pending = SHIM_PENDING_COMPLETE;
	return 0;
}
