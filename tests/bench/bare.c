/*
 * The yardstick: the smallest KVM_RUN loop, and the smallest life of a VM, that C can have.
 *
 * Built by bare.py into a shared library, so that it runs in turns with kvmpy in one process and
 * on one CPU. It times itself: no part of Python is in its figures.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define GUEST_ADDRESS 0x1000
#define IDENTITY_MAP 0xfffbc000ull
#define TSS_ADDRESS 0xfffbd000ul
#define CPUID_ENTRIES 256

struct bare {
	int kvm, vm, vcpu;
	size_t run_size, memory_size;
	struct kvm_run *run;
	void *memory;
};

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

/* 32-bit ring 0 without paging: what of that differs from the state after reset. */
static int set_registers(int vcpu)
{
	struct kvm_regs regs = { .rip = GUEST_ADDRESS, .rflags = 2 };
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return -1;
	sregs.cs.base = 0;
	sregs.cs.limit = 0xffffffff;
	sregs.cs.selector = 0x10;
	sregs.cs.g = sregs.cs.db = 1;
	sregs.cr0 |= 1;
	return ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs) ? -1 : 0;
}

/* What KVM supports, asked once per process, as kvmpy does. */
static int set_cpuid(int kvm, int vcpu)
{
	static union {
		struct kvm_cpuid2 table;
		char room[sizeof(struct kvm_cpuid2) +
			  CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2)];
	} all;

	if (!all.table.nent) {
		all.table.nent = CPUID_ENTRIES;
		if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &all.table))
			return -1;
	}
	return ioctl(vcpu, KVM_SET_CPUID2, &all.table);
}

static int add_memory(struct bare *bare, const void *guest, size_t guest_size)
{
	struct kvm_userspace_memory_region slot = { .memory_size = bare->memory_size };

	bare->memory = mmap(NULL, bare->memory_size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bare->memory == MAP_FAILED)
		return -1;
	slot.userspace_addr = (uintptr_t)bare->memory;
	memcpy((char *)bare->memory + GUEST_ADDRESS, guest, guest_size);
	return ioctl(bare->vm, KVM_SET_USER_MEMORY_REGION, &slot);
}

static int set_up(struct bare *bare, const void *guest, size_t guest_size, int with_cpuid)
{
	uint64_t identity = IDENTITY_MAP;

	bare->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (bare->kvm < 0)
		return -1;
	bare->vm = ioctl(bare->kvm, KVM_CREATE_VM, 0);
	if (bare->vm < 0 || ioctl(bare->vm, KVM_SET_TSS_ADDR, TSS_ADDRESS) ||
	    ioctl(bare->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) ||
	    add_memory(bare, guest, guest_size))
		return -1;
	bare->vcpu = ioctl(bare->vm, KVM_CREATE_VCPU, 0);
	if (bare->vcpu < 0 || (with_cpuid && set_cpuid(bare->kvm, bare->vcpu)))
		return -1;
	bare->run_size = ioctl(bare->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	bare->run = mmap(NULL, bare->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, bare->vcpu, 0);
	return bare->run == MAP_FAILED ? -1 : set_registers(bare->vcpu);
}

static void tear_down(struct bare *bare)
{
	munmap(bare->run, bare->run_size);
	close(bare->vcpu);
	close(bare->vm);
	close(bare->kvm);
	munmap(bare->memory, bare->memory_size);
}

/* The benchmark ends with its process: what a failure leaves open goes then. */
struct bare *bare_open(const void *guest, size_t guest_size, size_t memory_size)
{
	struct bare *bare = calloc(1, sizeof(*bare));

	if (!bare)
		return NULL;
	bare->memory_size = memory_size;
	return set_up(bare, guest, guest_size, 0) ? NULL : bare;
}

void bare_close(struct bare *bare)
{
	tear_down(bare);
	free(bare);
}

/* ns for `count` port exits, or -errno. */
int64_t bare_exits(struct bare *bare, uint64_t count)
{
	int64_t before = now();

	for (uint64_t i = 0; i < count; i++) {
		if (ioctl(bare->vcpu, KVM_RUN, 0) < 0)
			return -errno;
		if (bare->run->exit_reason != KVM_EXIT_IO)
			return -EPROTO;
	}
	return now() - before;
}

/* ns for `count` ioctls on the system descriptor: the cheapest that takes an integer, and the
 * cheapest that takes a structure; or -errno. */
int64_t bare_ioctls(int kvm, uint64_t count, int with_structure)
{
	unsigned long request = with_structure ? KVM_X86_GET_MCE_CAP_SUPPORTED : KVM_CHECK_EXTENSION;
	uint64_t capabilities;
	void *argument = with_structure ? &capabilities : NULL;
	int64_t before = now();

	for (uint64_t i = 0; i < count; i++)
		if (ioctl(kvm, request, argument) < 0)
			return -errno;
	return now() - before;
}

/* ns from opening /dev/kvm over the guest's first exit to the last close, or -errno. */
int64_t bare_life(const void *guest, size_t guest_size, size_t memory_size, int with_cpuid)
{
	struct bare bare = { .memory_size = memory_size };
	int64_t before = now();

	if (set_up(&bare, guest, guest_size, with_cpuid) || ioctl(bare.vcpu, KVM_RUN, 0) < 0)
		return -errno;
	if (bare.run->exit_reason != KVM_EXIT_IO)
		return -EPROTO;
	tear_down(&bare);
	return now() - before;
}
