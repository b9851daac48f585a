/* Answers to exits that are no access, over a scripted KVM: MSRs, hypercalls. */
#define _GNU_SOURCE /* memfd_create */
#include "fake_kvm.h"

#include <linux/kvm_para.h>

/* What KVM hands out: kvm_run's union, as bytes, for a step's `data`. */
struct ask {
	struct kvm_run run;
	uint8_t bytes[256];
};

#define UNION(ask) ((ask)->bytes)

static struct ask *seal(struct ask *ask)
{
	memcpy(ask->bytes, &ask->run.hw, sizeof(ask->bytes));
	return ask;
}

/* The union as it came back to KVM. */
static const struct kvm_run *answered(void)
{
	static struct kvm_run run;

	memcpy(&run.hw, fake.answered, sizeof(fake.answered));
	return &run;
}

static struct ask msr_ask(uint32_t index, uint64_t data, uint8_t error)
{
	struct ask ask = { 0 };

	ask.run.msr.index = index;
	ask.run.msr.data = data;
	ask.run.msr.error = error; /* what the exit before has left */
	ask.run.msr.reason = KVM_MSR_EXIT_REASON_FILTER;
	seal(&ask);
	return ask;
}

static void unanswered_msrs(void)
{
	struct ask ask = msr_ask(0x10, 0x1234, 0), left = msr_ask(0x10, 0x1234, 1);
	const struct step script[] = { { STEP_ASK, 0, KVM_EXIT_X86_RDMSR, 0, UNION(&ask) },
				       { STEP_ASK, 0, KVM_EXIT_X86_WRMSR, 0, UNION(&left) },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, KVM_EXIT_X86_RDMSR);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(answered()->msr.error, 1); /* a read nobody answers is #GP */
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(answered()->msr.error, 0); /* a write nobody refuses is done */
	CHECK_EQUAL(fake.answers, 2);
	end();
}

static void answered_msrs(void)
{
	struct ask ask = msr_ask(0x10, 0x1234, 0);
	const struct step script[] = { { STEP_ASK, 0, KVM_EXIT_X86_RDMSR, 0, UNION(&ask) },
				       { STEP_ASK, 0, KVM_EXIT_X86_WRMSR, 0, UNION(&ask) },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(shim_reply(vcpu, 0xabcdef), 0);
	CHECK_EQUAL(shim_reply(vcpu, 1), -EINVAL);
	CHECK_EQUAL(shim_refuse(vcpu), -EINVAL);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(answered()->msr.error, 0);
	CHECK_EQUAL(answered()->msr.data, 0xabcdef);
	/* Looking at registers does not take the chance to refuse a write. */
	CHECK_EQUAL(shim_sync(vcpu, KVM_SYNC_X86_REGS), 0);
	CHECK_EQUAL(shim_refuse(vcpu), 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(answered()->msr.error, 1);
	CHECK_EQUAL(shim_reply(vcpu, 1), -EINVAL); /* HLT wants no answer */
	CHECK_EQUAL(shim_refuse(vcpu), -EINVAL);
	end();
}

static void msr_handlers(void)
{
	struct ask first = msr_ask(0x10, 0x1234, 0), second = msr_ask(0x11, 7, 0);
	const struct step script[] = { { STEP_ASK, 0, KVM_EXIT_X86_RDMSR, 0, UNION(&first) },
				       { STEP_ASK, 0, KVM_EXIT_X86_WRMSR, 0, UNION(&second) },
				       { STEP_ASK, 0, KVM_EXIT_X86_RDMSR, 0, UNION(&first) },
				       { STEP_ASK, 0, KVM_EXIT_X86_WRMSR, 0, UNION(&first) },
				       { 0 } };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(shim_bus_claim(bus, SHIM_RDMSR, 0x10, 1, SHIM_OWNER_PYTHON, 3, NULL), 0);
	CHECK_EQUAL(shim_bus_claim(bus, SHIM_WRMSR, 0x11, 1, SHIM_OWNER_PYTHON, 4, NULL), 0);
	CHECK_EQUAL(run(), SHIM_MSR);
	CHECK_EQUAL(vcpu->report.handler, 3);
	CHECK_EQUAL(vcpu->report.address, 0x10);
	CHECK_EQUAL(vcpu->report.is_write, 0);
	vcpu->report.value = 0x5678;
	CHECK_EQUAL(shim_resume(vcpu), SHIM_MSR);
	CHECK_EQUAL(answered()->msr.data, 0x5678);
	CHECK_EQUAL(answered()->msr.error, 0);
	CHECK_EQUAL(vcpu->report.handler, 4);
	CHECK_EQUAL(vcpu->report.is_write, 1);
	CHECK_EQUAL(vcpu->report.value, 7);
	CHECK_EQUAL(shim_refuse(vcpu), 0);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_MSR);
	CHECK_EQUAL(answered()->msr.error, 1);
	/* An exception of the handler leaves the read unanswered: #GP. Then: nobody's write. */
	shim_finish(vcpu);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(answered()->msr.error, 1);
	CHECK_EQUAL(vcpu->run->exit_reason, KVM_EXIT_X86_WRMSR);
	end();
}

static void hypercalls(void)
{
	struct ask kvm = { 0 }, xen = { 0 }, hyperv = { 0 }, syndbg = { 0 }, tdx = { 0 };
	const struct step script[] = { { STEP_ASK, 0, KVM_EXIT_HYPERCALL, 0, UNION(&kvm) },
				       { STEP_ASK, 0, KVM_EXIT_XEN, 0, UNION(&xen) },
				       { STEP_ASK, 0, KVM_EXIT_HYPERV, 0, UNION(&hyperv) },
				       { STEP_ASK, 0, KVM_EXIT_HYPERV, 0, UNION(&syndbg) },
				       { STEP_ASK, 0, KVM_EXIT_TDX, 0, UNION(&tdx) },
				       { STEP_EXIT, 0, 5 }, { 0 } };
	uint64_t *words = (uint64_t *)&tdx.run.hw;

	kvm.run.hypercall.nr = KVM_HC_MAP_GPA_RANGE;
	kvm.run.hypercall.ret = 0x77;
	xen.run.xen.type = KVM_EXIT_XEN_HCALL;
	xen.run.xen.u.hcall.result = 0x77;
	hyperv.run.hyperv.type = KVM_EXIT_HYPERV_HCALL;
	hyperv.run.hyperv.u.hcall.result = 0x77;
	syndbg.run.hyperv.type = KVM_EXIT_HYPERV_SYNDBG;
	syndbg.run.hyperv.u.syndbg.status = 0x77;
	words[2] = 0x77;
	seal(&kvm), seal(&xen), seal(&hyperv), seal(&syndbg), seal(&tdx);

	for (unsigned round = 0; round < 3; round++) { /* unanswered, refused, answered */
		begin(script, ALL_SYNC);
		CHECK_EQUAL(run(), SHIM_EXIT);
		for (unsigned i = 0; i < 5; i++) {
			uint64_t raw[3];
			uint64_t result[5] = { -(uint64_t)KVM_ENOSYS, -(uint64_t)ENOSYS, 2, 0x77,
					       0x77 };

			if (round == 1)
				CHECK_EQUAL(shim_refuse(vcpu), 0);
			if (round == 2)
				CHECK_EQUAL(shim_reply(vcpu, 100 + i), 0);
			CHECK_EQUAL(run(), SHIM_EXIT);
			memcpy(raw, fake.answered, sizeof(raw));
			if (round == 2)
				result[i] = 100 + i;
			switch (i) {
			case 0:
				CHECK_EQUAL(answered()->hypercall.ret, result[i]);
				break;
			case 1:
				CHECK_EQUAL(answered()->xen.u.hcall.result, result[i]);
				break;
			case 2:
				CHECK_EQUAL(answered()->hyperv.u.hcall.result, result[i]);
				break;
			case 3:
				CHECK_EQUAL(answered()->hyperv.u.syndbg.status, result[i]);
				break;
			default:
				CHECK_EQUAL(raw[2], result[i]);
			}
		}
		CHECK_EQUAL(vcpu->run->exit_reason, KVM_EXIT_HLT);
		end();
	}
}

/* SynIC changes and types nobody knows wait for nothing. */
static void no_answer_wanted(void)
{
	const struct step script[] = { { STEP_EXIT, 0, KVM_EXIT_HYPERV },
				       { STEP_EXIT, 0, KVM_EXIT_XEN },
				       { STEP_EXIT, 0, KVM_EXIT_DEBUG }, { 0 } };

	begin(script, ALL_SYNC);
	for (unsigned i = 0; i < 3; i++) {
		if (i == 0)
			vcpu->run->hyperv.type = KVM_EXIT_HYPERV_SYNIC;
		else
			vcpu->run->xen.type = 9;
		CHECK_EQUAL(run(), SHIM_EXIT);
		CHECK_EQUAL(vcpu->pending, SHIM_PENDING_NONE);
		CHECK_EQUAL(shim_reply(vcpu, 1), -EINVAL);
		CHECK_EQUAL(shim_refuse(vcpu), -EINVAL);
	}
	end();
}

/* shim_complete() ends an unanswered instruction with the answer for that. */
static void completing(void)
{
	struct ask ask = msr_ask(0x10, 0x1234, 0);
	const struct step script[] = { { STEP_ASK, 0, KVM_EXIT_X86_RDMSR, 0, UNION(&ask) },
				       { STEP_READ, 0xd0000000, 4, 1, NULL, NULL, true },
				       { STEP_READ, 0xd0000004, 4 }, { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(shim_complete(vcpu), 0);
	CHECK_EQUAL(fake.answers, 1);
	CHECK_EQUAL(answered()->msr.error, 1);
	CHECK_EQUAL(shim_complete(vcpu), 0); /* nothing left to do */
	CHECK_EQUAL(fake.guest_entered, 1);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(shim_complete(vcpu), 1); /* the second half of the access waits */
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->mmio.phys_addr, 0xd0000004);
	CHECK_EQUAL(fake.guest_entered, 2);
	end();
}

/* Without an in-kernel LAPIC KVM_RUN takes CR8 from kvm_run, after the dirty registers. */
static void cr8_follows_the_registers(void)
{
	const struct step script[] = { { STEP_EXIT, 0, 5 }, { STEP_EXIT, 0, 5 }, { 0 } };

	for (unsigned i = 0; i < 2; i++) {
		begin(script, i ? 0 : ALL_SYNC);
		CHECK_EQUAL(shim_sync(vcpu, KVM_SYNC_X86_SREGS), 0);
		vcpu->regs->sregs.cr8 = 9;
		CHECK_EQUAL(run(), SHIM_EXIT);
		CHECK_EQUAL(vcpu->run->cr8, 9);
		end();
	}
}

int main(void)
{
	unanswered_msrs();
	answered_msrs();
	msr_handlers();
	hypercalls();
	no_answer_wanted();
	completing();
	cr8_follows_the_registers();
	puts("replies: ok");
	return 0;
}
