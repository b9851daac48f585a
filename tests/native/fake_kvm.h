/*
 * A KVM made of a script, for tests of the shim without /dev/kvm.
 *
 * Linked with -Wl,--wrap=ioctl: every ioctl of the shim arrives at __wrap_ioctl() below, which
 * plays KVM_RUN as the kernel does, in the kernel's order: dirty registers in, the pending access
 * completed, immediate_exit looked at, then the next step of the script; valid registers out on
 * every way back.
 */
#ifndef FAKE_KVM_H
#define FAKE_KVM_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "shim.h"

#define RUN_SIZE (3 * 4096)
#define DATA_OFFSET 4096

enum step_kind {
	STEP_END,  /* the script is over: the guest spins until somebody wants it out */
	STEP_OUT,  /* an access of `count` elements of `size` bytes, from `data` */
	STEP_IN,
	STEP_WRITE,
	STEP_READ,
	STEP_EXIT,        /* exit_reason `size` */
	STEP_ASK,         /* exit_reason `size`, the union from `data`; completed like an access */
	STEP_FAIL,        /* KVM_RUN gives -`size` after the dirty registers are in */
	STEP_FAIL_EARLY,  /* ... before */
	STEP_FAULT,       /* EFAULT with KVM_EXIT_MEMORY_FAULT */
	STEP_CALL,        /* call(): something happens while the guest runs; then the next step */
	STEP_CALL_EARLY,  /* call(): after the caller's last look at the flag, before KVM's */
	STEP_COALESCE,    /* a write that goes into the ring: MMIO, or with `count` PIO; then the next */
};

struct step {
	enum step_kind kind;
	uint64_t address;
	uint32_t size, count;
	const void *data;
	void (*call)(void);
	bool more; /* the next access comes from the same instruction: completion yields it */
	uint64_t data_offset; /* a lying one, 0: DATA_OFFSET */
};

static struct {
	const struct step *script;
	unsigned at;
	bool pending; /* the access of script[at - 1] is not completed */
	uint8_t read[256];     /* what the guest got from its reads, element after element */
	unsigned read_length;
	uint8_t answered[256];  /* kvm_run's union, as it came back after a STEP_ASK */
	unsigned answers;
	unsigned runs;         /* KVM_RUNs */
	unsigned guest_entered; /* ... that reached the guest */
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_vcpu_events events;
	unsigned long last_request;
	unsigned set_regs; /* KVM_SET_REGS calls */
	unsigned irq_line[2];
	int irq_level;
	bool set_fails;
	struct kvm_irq_routing_entry routes[64];
	unsigned route_count, tables;
	int routing_fails; /* with this errno, 0: no */
	struct kvm_msi msi; /* the last one */
	unsigned msis;
	int msi_result;
} fake;

static struct shim_bus *bus;
static struct shim_vcpu *vcpu;

static void step_access(struct kvm_run *run, const struct step *step)
{
	uint64_t offset = step->data_offset ? step->data_offset : DATA_OFFSET;
	bool write = step->kind == STEP_OUT || step->kind == STEP_WRITE;
	uint8_t *data = NULL;

	if (step->kind == STEP_OUT || step->kind == STEP_IN) {
		run->exit_reason = KVM_EXIT_IO;
		run->io.direction = write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
		run->io.port = step->address;
		run->io.size = step->size;
		run->io.count = step->count;
		run->io.data_offset = offset;
		if (offset == DATA_OFFSET)
			data = (uint8_t *)run + offset;
	} else {
		run->exit_reason = KVM_EXIT_MMIO;
		run->mmio.phys_addr = step->address;
		run->mmio.len = step->size;
		run->mmio.is_write = write;
		data = run->mmio.data;
	}
	/* As with the real one, a read leaves what the access before has left. */
	if (write && step->data)
		memcpy(data, step->data, step->size * (step->count ? step->count : 1));
}

/* The ring is the third page, as on the real one. */
#define RING_PAGE 2
#define RING_RECORDS 170

static struct kvm_coalesced_mmio_ring *coalesced_ring(void)
{
	return (void *)((uint8_t *)vcpu->run + RING_PAGE * 4096);
}

/* False when the ring is full: the real one exits then. */
static bool step_coalesce(const struct step *step)
{
	struct kvm_coalesced_mmio_ring *ring = coalesced_ring();
	struct kvm_coalesced_mmio *record = &ring->coalesced_mmio[ring->last];

	if ((ring->last + 1) % RING_RECORDS == ring->first)
		return false;
	memset(record, 0, sizeof(*record));
	record->phys_addr = step->address;
	record->len = step->size;
	record->pio = step->count;
	memcpy(record->data, step->data, step->size);
	ring->last = (ring->last + 1) % RING_RECORDS;
	return true;
}

static void complete_access(struct kvm_run *run)
{
	const struct step *step = &fake.script[fake.at - 1];
	unsigned length = step->size * (step->kind == STEP_IN ? step->count : 1);

	fake.pending = false;
	if (step->kind == STEP_ASK) {
		memcpy(fake.answered, &run->hw, sizeof(fake.answered));
		fake.answers++;
		return;
	}
	if (step->kind != STEP_IN && step->kind != STEP_READ)
		return;
	CHECK(fake.read_length + length <= sizeof(fake.read));
	memcpy(fake.read + fake.read_length,
	       step->kind == STEP_IN ? (uint8_t *)run + DATA_OFFSET : run->mmio.data, length);
	fake.read_length += length;
}

static void take_dirty(struct kvm_run *run)
{
	if (run->kvm_dirty_regs & KVM_SYNC_X86_REGS)
		fake.regs = run->s.regs.regs;
	if (run->kvm_dirty_regs & KVM_SYNC_X86_SREGS)
		fake.sregs = run->s.regs.sregs;
	if (run->kvm_dirty_regs & KVM_SYNC_X86_EVENTS)
		fake.events = run->s.regs.events;
	run->kvm_dirty_regs = 0;
}

static int one_step(struct kvm_run *run)
{
	for (;;) {
		const struct step *step = &fake.script[fake.at];

		switch (step->kind) {
		case STEP_END:
			while (!__atomic_load_n(&run->immediate_exit, __ATOMIC_SEQ_CST))
				usleep(50);
			return -EINTR;
		case STEP_CALL:
			fake.at++;
			step->call();
			/* In the guest a signal is what counts, and its handler has set the flag. */
			if (__atomic_load_n(&run->immediate_exit, __ATOMIC_SEQ_CST))
				return -EINTR;
			continue;
		case STEP_COALESCE:
			fake.at++;
			fake.regs.rip++;
			if (step_coalesce(step))
				continue;
			step_access(run, &(struct step){ step->count ? STEP_OUT : STEP_WRITE,
							 step->address, step->size, 1, step->data });
			fake.pending = true;
			return 0;
		case STEP_FAIL:
			fake.at++;
			return -(int)step->size;
		case STEP_FAULT:
			fake.at++;
			run->exit_reason = KVM_EXIT_MEMORY_FAULT;
			memcpy(&run->hw, (uint64_t[]){ 8, step->address, 4096 }, 24);
			return -EFAULT;
		case STEP_EXIT:
			fake.at++;
			run->exit_reason = step->size;
			fake.regs.rip++;
			return 0;
		case STEP_ASK:
			fake.at++;
			run->exit_reason = step->size;
			memcpy(&run->hw, step->data, sizeof(fake.answered));
			fake.pending = true;
			fake.regs.rip++;
			return 0;
		default:
			fake.at++;
			step_access(run, step);
			fake.pending = true;
			fake.regs.rip++;
			return 0;
		}
	}
}

static int fake_kvm_run(struct kvm_run *run)
{
	const struct step *step = &fake.script[fake.at];
	int result;

	fake.runs++;
	if (step->kind == STEP_CALL_EARLY) {
		fake.at++;
		step->call();
		step++;
	}
	if (step->kind == STEP_FAIL_EARLY) {
		fake.at++;
		result = -(int)step->size;
		goto out;
	}
	take_dirty(run);
	if (fake.pending) {
		bool more = fake.script[fake.at - 1].more;

		complete_access(run);
		if (more) {
			result = one_step(run);
			goto out;
		}
	}
	if (__atomic_load_n(&run->immediate_exit, __ATOMIC_SEQ_CST)) {
		result = -EINTR;
		goto out;
	}
	fake.guest_entered++;
	result = one_step(run);
out:
	if (run->kvm_valid_regs & KVM_SYNC_X86_REGS)
		run->s.regs.regs = fake.regs;
	if (run->kvm_valid_regs & KVM_SYNC_X86_SREGS)
		run->s.regs.sregs = fake.sregs;
	if (run->kvm_valid_regs & KVM_SYNC_X86_EVENTS)
		run->s.regs.events = fake.events;
	return result;
}

static int take_routing(const struct kvm_irq_routing *routing)
{
	if (fake.routing_fails)
		return -fake.routing_fails;
	CHECK(routing->nr <= sizeof(fake.routes) / sizeof(fake.routes[0]));
	memcpy(fake.routes, routing->entries, routing->nr * sizeof(fake.routes[0]));
	fake.route_count = routing->nr;
	fake.tables++;
	return 0;
}

int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;
	int result = 0;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	(void)fd;
	fake.last_request = request;
	switch (request) {
	case KVM_RUN:
		result = fake_kvm_run(vcpu->run);
		break;
	case KVM_GET_REGS:
		memcpy(argument, &fake.regs, sizeof(fake.regs));
		break;
	case KVM_SET_REGS:
		fake.set_regs++;
		if (fake.set_fails)
			result = -EINVAL;
		else
			memcpy(&fake.regs, argument, sizeof(fake.regs));
		break;
	case KVM_GET_SREGS:
		memcpy(argument, &fake.sregs, sizeof(fake.sregs));
		break;
	case KVM_SET_SREGS:
		memcpy(&fake.sregs, argument, sizeof(fake.sregs));
		break;
	case KVM_GET_VCPU_EVENTS:
		memcpy(argument, &fake.events, sizeof(fake.events));
		break;
	case KVM_SET_VCPU_EVENTS:
		memcpy(&fake.events, argument, sizeof(fake.events));
		break;
	case KVM_IRQ_LINE: {
		struct kvm_irq_level *line = argument;

		fake.irq_line[line->level]++;
		fake.irq_level = line->level;
		break;
	}
	case KVM_SET_GSI_ROUTING:
		result = take_routing(argument);
		break;
	case KVM_SIGNAL_MSI:
		memcpy(&fake.msi, argument, sizeof(fake.msi));
		fake.msis++;
		result = fake.msi_result;
		break;
	default:
		result = -ENOTTY;
	}
	if (result < 0) {
		errno = -result;
		return -1;
	}
	return result;
}

#define ALL_SYNC (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)

/* A vCPU whose descriptor is memory, on a fresh bus. */
static void begin(const struct step *script, uint64_t sync_supported)
{
	int fd = memfd_create("kvm_run", MFD_CLOEXEC), error;

	CHECK(fd >= 0 && ftruncate(fd, RUN_SIZE) == 0);
	memset(&fake, 0, sizeof(fake));
	fake.script = script;
	fake.regs.rip = 0x1000;
	bus = shim_bus_new();
	vcpu = shim_vcpu_new(fd, RUN_SIZE, bus, sync_supported, &error);
	CHECK(vcpu);
}

static void end(void)
{
	shim_vcpu_free(vcpu);
	shim_bus_free(bus);
	vcpu = NULL;
}

static inline int run(void)
{
	return shim_run(vcpu, -1, UINT64_MAX);
}

#endif
