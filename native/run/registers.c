/*
 * The page of live registers.
 *
 * Where KVM has KVM_CAP_SYNC_REGS the page is kvm_run's own, and KVM fills and takes it with every
 * KVM_RUN; for fields it does not, the page is ours, and ioctls do. A copy of what KVM gave tells
 * what was edited, so that an edit can neither be dropped for a dirty bit not set nor cost a
 * system call of its own (KVM API, "6.8 KVM_CAP_SYNC_REGS").
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "shim.h"

#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

static const struct {
	uint64_t field;
	size_t offset, size;
	unsigned long get, set;
} groups[] = {
	{ KVM_SYNC_X86_REGS, offsetof(struct kvm_sync_regs, regs), sizeof(struct kvm_regs),
	  KVM_GET_REGS, KVM_SET_REGS },
	{ KVM_SYNC_X86_SREGS, offsetof(struct kvm_sync_regs, sregs), sizeof(struct kvm_sregs),
	  KVM_GET_SREGS, KVM_SET_SREGS },
	{ KVM_SYNC_X86_EVENTS, offsetof(struct kvm_sync_regs, events),
	  sizeof(struct kvm_vcpu_events), KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS },
};
#define GROUPS (sizeof(groups) / sizeof(groups[0]))

/* What the page holds now becomes the state that later edits are compared with. */
static void mark_current(struct shim_vcpu *vcpu, uint64_t fields)
{
	for (size_t i = 0; i < GROUPS; i++)
		if (fields & groups[i].field)
			memcpy((char *)vcpu->shadow + groups[i].offset,
			       (char *)vcpu->regs + groups[i].offset, groups[i].size);
	vcpu->fields |= fields;
}

/*
 * Without an in-kernel LAPIC KVM takes CR8 from kvm_run at each entry, past what SREGS said ("5. The
 * kvm_run structure").
 */
static void pass_cr8(struct shim_vcpu *vcpu, uint64_t fields)
{
	if (fields & KVM_SYNC_X86_SREGS)
		vcpu->run->cr8 = vcpu->regs->sregs.cr8;
}

static uint64_t edited_fields(const struct shim_vcpu *vcpu)
{
	uint64_t edited = 0;

	for (size_t i = 0; i < GROUPS; i++)
		if ((vcpu->fields & groups[i].field) &&
		    memcmp((char *)vcpu->shadow + groups[i].offset,
			   (char *)vcpu->regs + groups[i].offset, groups[i].size))
			edited |= groups[i].field;
	return edited;
}

/* Hand edits to KVM by ioctl, without running. */
int shim_write_back(struct shim_vcpu *vcpu)
{
	uint64_t edited = edited_fields(vcpu);

	for (size_t i = 0; i < GROUPS; i++) {
		if (!(edited & groups[i].field))
			continue;
		if (ioctl(vcpu->fd, groups[i].set, (char *)vcpu->regs + groups[i].offset) < 0)
			return -errno;
		mark_current(vcpu, groups[i].field);
		pass_cr8(vcpu, groups[i].field);
	}
	return 0;
}

/* Before the first KVM_RUN after Python had the vCPU: edits go in, and the fields the caller has
 * been looking at are asked for again (each costs KVM time at every exit, so nobody pays for what
 * is not read). */
int shim_hand_over_registers(struct shim_vcpu *vcpu)
{
	uint64_t edited = edited_fields(vcpu), by_page = edited & vcpu->sync_supported;

	if (unlikely(edited & ~by_page)) {
		int error = shim_write_back(vcpu);

		if (error)
			return error;
		by_page = 0;
	}
	/* shadow := what KVM is about to be given, in case this entry does not take it. */
	if (by_page) {
		mark_current(vcpu, by_page);
		pass_cr8(vcpu, by_page);
	}
	vcpu->run->kvm_dirty_regs = by_page;
	vcpu->run->kvm_valid_regs = vcpu->accessed & vcpu->sync_supported;
	vcpu->accessed = 0;
	vcpu->handed_over = true;
	return 0;
}

/*
 * KVM_RUN can fail before it has taken the dirty fields (an application processor that waits for
 * its SIPI does), and writes the page all the same: they go in by ioctl. Not after EAGAIN, which
 * means that INIT or SIPI has just set the registers. What KVM refuses has failed the entry.
 */
void shim_set_untaken_edits(struct shim_vcpu *vcpu, int error)
{
	uint64_t untaken = vcpu->run->kvm_dirty_regs & vcpu->sync_supported;

	if (likely(!untaken))
		return;
	vcpu->run->kvm_dirty_regs = 0;
	vcpu->run->kvm_valid_regs &= ~untaken; /* the page shows neither: have it fetched */
	for (size_t i = 0; i < GROUPS && error != -EAGAIN; i++)
		if (untaken & groups[i].field)
			ioctl(vcpu->fd, groups[i].set, (char *)vcpu->shadow + groups[i].offset);
}

uint64_t shim_edited(const struct shim_vcpu *vcpu)
{
	return edited_fields(vcpu);
}

/* Write to the page what differs between `edited` and `before`, word by word. */
void shim_repeat_edits(struct shim_vcpu *vcpu, uint64_t fields, const struct kvm_sync_regs *edited,
		       const struct kvm_sync_regs *before)
{
	for (size_t i = 0; i < GROUPS; i++) {
		if (!(fields & groups[i].field))
			continue;
		for (size_t at = groups[i].offset; at < groups[i].offset + groups[i].size; at += 8)
			if (memcmp((char *)edited + at, (char *)before + at, 8))
				memcpy((char *)vcpu->regs + at, (char *)edited + at, 8);
	}
}

/* After the last KVM_RUN, before Python has the vCPU again. */
void shim_take_registers(struct shim_vcpu *vcpu)
{
	if (!vcpu->handed_over)
		return;
	vcpu->handed_over = false;
	vcpu->fields = 0;
	mark_current(vcpu, vcpu->run->kvm_valid_regs);
}

/* Ask KVM for what the page does not show yet. */
int shim_fetch(struct shim_vcpu *vcpu, uint64_t fields)
{
	for (size_t i = 0; i < GROUPS; i++) {
		if (!(fields & ~vcpu->fields & groups[i].field))
			continue;
		if (ioctl(vcpu->fd, groups[i].get, (char *)vcpu->regs + groups[i].offset) < 0)
			return -errno;
		mark_current(vcpu, groups[i].field);
	}
	return 0;
}
