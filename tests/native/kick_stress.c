/*
 * Kicks at random moments: none may be lost. And pauses: no guest may move in one.
 *
 *     kick_stress [KICKS [SEED [PAUSES]]]
 *
 * One thread runs a guest that never exits by itself; the other kicks it, waits for the run to end,
 * and kicks again after a random while: before the run, while it is being entered, in the guest,
 * while it leaves. A kick that is lost leaves the guest spinning: a watchdog then tells where.
 *
 * With PAUSES, that many come before each kick: once a pause is acknowledged, the counter that the
 * guest increments stands still until it is taken back.
 *
 * On the real KVM. The guest is `1: incq COUNTER; jmp 1b` in 64-bit ring 3, which every module runs
 * natively.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim.h"

#define MEMORY (1 << 20)
#define CODE 0x8000
#define COUNTER 0xa000
#define LOST_AFTER_S 30

#define NEED(call)                                                                             \
	do {                                                                                   \
		if ((call) < 0) {                                                              \
			fprintf(stderr, "%s: %s\n", #call, strerror(errno));                   \
			exit(2);                                                               \
		}                                                                              \
	} while (0)

static struct shim_vcpu *vcpu;
static _Atomic unsigned long ended, kicked;
static sem_t run_ended;
static unsigned long total = 1000000;

static struct kvm_segment segment(uint16_t selector, uint8_t type, bool code)
{
	return (struct kvm_segment){ .limit = 0xffffffff, .selector = selector, .type = type,
				     .present = 1, .dpl = 3, .db = !code, .s = 1, .l = code, .g = 1 };
}

/* Long mode, ring 3: one 2 MiB page maps the memory. No exception ever happens. */
static void enter_ring_3(int fd, uint8_t *memory)
{
	uint64_t *pml4 = (uint64_t *)(memory + 0x1000), *pdpt = (uint64_t *)(memory + 0x2000),
		 *pd = (uint64_t *)(memory + 0x3000);
	struct kvm_regs regs = { .rip = CODE, .rsp = 0x9000, .rflags = 2 };
	struct kvm_sregs sregs;

	pml4[0] = 0x2007, pdpt[0] = 0x3007, pd[0] = 0x87;
	memcpy(memory + CODE, "\x48\xff\x04\x25\x00\xa0\x00\x00\xeb\xf6", 10);
	NEED(ioctl(fd, KVM_GET_SREGS, &sregs));
	sregs.cs = segment(0x33, 11, true);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(0x2b, 3, false);
	sregs.tr = (struct kvm_segment){ .limit = 0x67, .selector = 0x40, .type = 11, .present = 1,
					 .base = 0x5000 };
	sregs.cr0 = 0x80050033, sregs.cr3 = 0x1000, sregs.cr4 = 0x20, sregs.efer = 0xd01;
	NEED(ioctl(fd, KVM_SET_SREGS, &sregs));
	NEED(ioctl(fd, KVM_SET_REGS, &regs));
}

static void set_cpuid(int kvm, int fd)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));

	cpuid->nent = 256;
	NEED(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid));
	NEED(ioctl(fd, KVM_SET_CPUID2, cpuid));
	free(cpuid);
}

static void *run_until_all_are_done(void *nothing)
{
	while (atomic_load(&ended) < total) {
		int stop = shim_run(vcpu, -1, UINT64_MAX);

		while (stop == SHIM_SIGNAL || stop == SHIM_PAUSED) /* or an echo of the kick before */
			stop = shim_resume(vcpu);
		if (stop != SHIM_KICKED) {
			fprintf(stderr, "run %lu ended with %d, value %llu\n", ended, stop,
				(unsigned long long)vcpu->report.value);
			exit(1);
		}
		atomic_fetch_add(&ended, 1);
		sem_post(&run_ended);
	}
	return nothing;
}

static void *watch(void *nothing)
{
	for (unsigned long last = -1UL; atomic_load(&ended) < total;) {
		if (ended == last) {
			fprintf(stderr, "kick %lu was lost: %lu runs ended\n", kicked, ended);
			_exit(1);
		}
		last = ended;
		for (unsigned i = 0; i < LOST_AFTER_S * 10 && ended < total; i++)
			usleep(100000);
	}
	return nothing;
}

static void spin(unsigned iterations)
{
	for (volatile unsigned i = 0; i < iterations; i++)
		;
}

static void pause_once(volatile uint64_t *counter, unsigned dice)
{
	uint64_t before;
	int result;

	shim_pause(vcpu);
	do
		result = shim_pause_wait(vcpu, shim_now() + LOST_AFTER_S * 1000000000LL, false);
	while (result == -EINTR);
	if (result) {
		fprintf(stderr, "a pause was lost\n");
		_exit(1);
	}
	before = *counter;
	spin(dice % 4096);
	result = dice & 1 << 19 ? shim_sync(vcpu, KVM_SYNC_X86_REGS) : 0;
	if (*counter != before || (result && result != -EBUSY)) { /* a run may just begin */
		fprintf(stderr, "in a pause: counter %+lld, registers %d\n",
			(long long)(*counter - before), result);
		_exit(1);
	}
	shim_unpause(&vcpu, 1);
	/* Every other time the guest gets to move; else the next pause may find it still waiting. */
	for (unsigned i = 0; dice & 1 << 18 && *counter == before; i++)
		if (i == LOST_AFTER_S * 100000) {
			fprintf(stderr, "a pause that was taken back goes on\n");
			_exit(1);
		} else if (i > 1000) {
			usleep(10);
		}
}

int main(int argc, char **argv)
{
	unsigned seed = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
	unsigned long pauses = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
	struct shim_bus *bus = shim_bus_new();
	struct kvm_userspace_memory_region slot = { .memory_size = MEMORY };
	pthread_t runner, watchdog;
	uint8_t *memory;
	int kvm, vm, fd, error;
	int64_t begin, ns;

	if (argc > 1)
		total = strtoul(argv[1], NULL, 0);
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC));
	NEED(vm = ioctl(kvm, KVM_CREATE_VM, 0));
	NEED(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000));
	slot.userspace_addr = (uintptr_t)memory;
	NEED(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
	NEED(fd = ioctl(vm, KVM_CREATE_VCPU, 0));
	set_cpuid(kvm, fd);
	enter_ring_3(fd, memory);
	vcpu = shim_vcpu_new(fd, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), bus,
			     ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS), &error);
	if (!vcpu) {
		fprintf(stderr, "no vCPU: %s\n", strerror(-error));
		return 2;
	}
	sem_init(&run_ended, 0, 0);
	begin = shim_now();
	pthread_create(&runner, NULL, run_until_all_are_done, NULL);
	pthread_create(&watchdog, NULL, watch, NULL);
	for (kicked = 1; kicked <= total; kicked++) {
		unsigned dice = rand_r(&seed) >> 4;

		/* before the run, about the time that entering takes, in the guest, long in it */
		if (dice % 1024 == 0)
			usleep(dice % 200);
		else
			spin(dice % (dice & 1 << 20 ? 1024 : 16384));
		for (unsigned long i = 0; i < pauses; i++) {
			pause_once((uint64_t *)(memory + COUNTER), dice = rand_r(&seed) >> 4);
			spin(dice % (dice & 1 << 20 ? 64 : 16384));
		}
		shim_kick(vcpu);
		/* A short wait is spun through, so that the next kick can be early; a long one is
		 * slept through, so that the runner gets this CPU if there is no other. */
		for (unsigned i = 0; i < 2000 && atomic_load(&ended) < kicked; i++)
			;
		while (sem_wait(&run_ended) && errno == EINTR)
			;
	}
	pthread_join(runner, NULL);
	ns = shim_now() - begin;
	pthread_join(watchdog, NULL);
	printf("%lu kicks, none lost, %.0f kicks/s\n", total, total / (ns / 1e9));
	shim_vcpu_free(vcpu);
	shim_bus_free(bus);
	munmap(memory, MEMORY);
	close(vm);
	close(kvm);
	return 0;
}
