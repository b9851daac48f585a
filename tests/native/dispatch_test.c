/*
 * The run loop and its dispatch over a scripted kvm_run page: what goes where, in what order, what
 * the guest reads, and what happens when KVM_RUN fails in each of its ways.
 */
#define _GNU_SOURCE /* memfd_create, F_SETPIPE_SZ */
#include "fake_kvm.h"

#define PORT 0x60
#define BASE 0xd0000000

static const uint64_t sync_modes[] = { ALL_SYNC, 0 };

static uint64_t reg(uint64_t fields)
{
	CHECK_EQUAL(shim_sync(vcpu, fields), 0);
	return vcpu->regs->regs.rip;
}

static void claim_python(uint64_t first, bool is_mmio)
{
	CHECK_EQUAL(shim_bus_claim(bus, is_mmio, first, 4, SHIM_OWNER_PYTHON, 7, NULL), 0);
}

/* ---- accesses */

static void unclaimed_reads_are_all_ones(void)
{
	const struct step script[] = {
		{ STEP_OUT, 0x10, 4, 2, "SECRETS!" }, { STEP_IN, 0x11, 4, 2 },
		{ STEP_WRITE, BASE, 8, 0, "secrets!" }, { STEP_READ, BASE, 8 }, { STEP_EXIT, 0, 5 },
		{ 0 },
	};
	uint8_t ones[16];

	begin(script, ALL_SYNC);
	memset(ones, 0xff, sizeof(ones));
	for (unsigned i = 0; i < 4; i++)
		CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->pending, SHIM_PENDING_REPLY);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(fake.read_length, 16);
	CHECK(!memcmp(fake.read, ones, 16));
	end();
}

static void reads_of_counters_and_rings_are_all_ones(void)
{
	const struct step script[] = {
		{ STEP_OUT, 0x10, 4, 1, "WXYZ" }, { STEP_IN, 0x10, 4, 1 }, { STEP_IN, 0x20, 4, 1 },
		{ STEP_EXIT, 0, 5 }, { 0 },
	};
	struct shim_counter counter = { 0 };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(shim_bus_claim(bus, false, 0x10, 1, SHIM_OWNER_COUNTER, 0, &counter), 0);
	CHECK_EQUAL(shim_bus_claim(bus, false, 0x20, 1, SHIM_OWNER_RING, 0, NULL), 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK(!memcmp(fake.read, "\xff\xff\xff\xff\xff\xff\xff\xff", 8));
	CHECK_EQUAL(counter.reads, 1);
	CHECK_EQUAL(counter.writes, 1);
	end();
}

static void answers_reach_the_guest(void)
{
	const struct step script[] = { { STEP_IN, 0x11, 2, 3 }, { STEP_READ, BASE, 4 },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"abcde", 5), -EMSGSIZE);
	CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"abcdef", 6), 0);
	CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"abcdef", 6), -EINVAL);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"wxyz", 4), 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"wxyz", 4), -EINVAL);
	CHECK(!memcmp(fake.read, "abcdefwxyz", 10));
	end();
}

static void python_gets_strings_element_by_element(void)
{
	const struct step script[] = { { STEP_OUT, PORT, 2, 4, "aabbccdd" }, { STEP_IN, PORT, 4, 3 },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	claim_python(PORT, false);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	for (unsigned i = 0; i < 4; i++) {
		CHECK_EQUAL(vcpu->report.handler, 7);
		CHECK_EQUAL(vcpu->report.address, PORT);
		CHECK_EQUAL(vcpu->report.size, 2);
		CHECK_EQUAL(vcpu->report.is_write, 1);
		CHECK_EQUAL(vcpu->report.value, 0x101 * ('a' + i));
		CHECK_EQUAL(shim_resume(vcpu), SHIM_ACCESS);
	}
	for (unsigned i = 0; i < 3; i++) {
		CHECK_EQUAL(vcpu->report.is_write, 0);
		vcpu->report.value = 0x11111111ULL * (i + 1);
		CHECK_EQUAL(shim_resume(vcpu), i < 2 ? SHIM_ACCESS : SHIM_EXIT);
	}
	CHECK(!memcmp(fake.read, "\x11\x11\x11\x11\x22\x22\x22\x22\x33\x33\x33\x33", 12));
	end();
}

static void a_handlers_exception_ends_a_string(void)
{
	const struct step script[] = { { STEP_IN, PORT, 1, 4 }, { STEP_OUT, 0x99, 1, 1, "x" },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	claim_python(PORT, false);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	vcpu->report.value = 0x41;
	CHECK_EQUAL(shim_resume(vcpu), SHIM_ACCESS);
	shim_finish(vcpu);
	CHECK_EQUAL(reg(KVM_SYNC_X86_REGS), 0x1001);
	CHECK_EQUAL(fake.pending, 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK(!memcmp(fake.read, "\x41\xff\xff\xff", 4));
	end();
}

/* A device that takes what is written and answers with the offset. */
static uint8_t written[64];
static unsigned written_length;
static int stop_after = -1, device_stop;

static int record(struct shim_device *device, struct shim_vcpu *who, uint64_t offset, uint8_t *data,
		  unsigned size, bool is_write)
{
	(void)device, (void)who;
	if (is_write) {
		CHECK(written_length + size <= sizeof(written));
		memcpy(written + written_length, data, size);
		written_length += size;
	} else {
		for (unsigned i = 0; i < size; i++)
			CHECK_EQUAL(data[i], 0xff); /* a device finds all ones */
		data[0] = offset;
	}
	return stop_after >= 0 && (int)written_length > stop_after ? device_stop : SHIM_CONTINUE;
}

static void c_devices(void)
{
	struct shim_device device = { .access = record };
	const struct step script[] = {
		{ STEP_OUT, PORT + 3, 4, 3, "abcdefghijkl" }, { STEP_IN, PORT + 1, 2, 2 },
		{ STEP_WRITE, BASE + 2, 8, 0, "ABCDEFGH" }, { STEP_READ, BASE + 3, 1 },
		{ STEP_EXIT, 0, 5 }, { 0 },
	};

	begin(script, ALL_SYNC);
	written_length = 0;
	CHECK_EQUAL(shim_bus_claim(bus, false, PORT, 4, SHIM_OWNER_DEVICE, 0, &device), 0);
	CHECK_EQUAL(shim_bus_claim(bus, true, BASE, 4, SHIM_OWNER_DEVICE, 0, &device), 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK(!memcmp(written, "abcdefghijklABCDEFGH", 20));
	CHECK(!memcmp(fake.read, "\x01\xff\x01\xff\x03", 5));
	CHECK_EQUAL(vcpu->counters->exits[KVM_EXIT_IO], 2);
	CHECK_EQUAL(vcpu->counters->exits[KVM_EXIT_MMIO], 2);
	end();
}

/* A stop in the middle of a string, and then an exit that has nothing to do with it. */
static void what_is_left_of_a_string_is_forgotten(void)
{
	struct shim_device device = { .access = record };
	const struct step script[] = { { STEP_OUT, PORT, 1, 4, "abcd" }, { STEP_OUT, 0x99, 1, 1, "x" },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	written_length = 0, stop_after = 1, device_stop = SHIM_DEBUG_EXIT;
	CHECK_EQUAL(shim_bus_claim(bus, false, PORT, 4, SHIM_OWNER_DEVICE, 0, &device), 0);
	CHECK_EQUAL(run(), SHIM_DEBUG_EXIT);
	stop_after = -1;
	CHECK_EQUAL(reg(KVM_SYNC_X86_REGS), 0x1001);
	CHECK_EQUAL(fake.pending, 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	reg(KVM_SYNC_X86_REGS);
	CHECK_EQUAL(fake.pending, 0); /* completed, whatever the string before had left */
	end();
}

static void fragments(void)
{
	const struct step script[] = {
		{ STEP_READ, BASE + 0xffd, 3, .more = true }, { STEP_READ, BASE + 0x1000, 5 },
		{ STEP_EXIT, 0, 5 }, { 0 },
	};

	for (unsigned look = 0; look < 2; look++) {
		begin(script, ALL_SYNC);
		CHECK_EQUAL(run(), SHIM_EXIT);
		CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"abc", 3), 0);
		if (look) {
			reg(KVM_SYNC_X86_REGS); /* completion brings the second half */
			CHECK(vcpu->deferred);
			reg(KVM_SYNC_X86_SREGS);
		}
		CHECK_EQUAL(run(), SHIM_EXIT);
		CHECK_EQUAL(vcpu->run->mmio.phys_addr, BASE + 0x1000);
		CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"defgh", 5), 0);
		CHECK_EQUAL(run(), SHIM_EXIT);
		CHECK(!memcmp(fake.read, "abcdefgh", 8));
		CHECK_EQUAL(vcpu->counters->exits[KVM_EXIT_MMIO], 2);
		end();
	}
}

/* ---- a page that lies */

static void lying_pages(void)
{
	static const struct {
		uint64_t offset;
		uint32_t size, count;
	} lies[] = {
		{ RUN_SIZE, 1, 1 }, { RUN_SIZE - 1, 2, 1 }, { RUN_SIZE - 8, 4, 3 },
		{ UINT64_MAX, 1, 1 }, { UINT64_MAX - 3, 4, 1 }, { 1ULL << 63, 1, 1 },
		{ DATA_OFFSET, 4, UINT32_MAX }, { DATA_OFFSET, 255, 200 }, { DATA_OFFSET, 16, 1 },
	};

	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		for (unsigned kind = STEP_OUT; kind <= STEP_IN; kind++) {
			const struct step script[] = { { kind, PORT, lies[i].size, lies[i].count,
							 .data_offset = lies[i].offset },
						       { 0 } };
			uint64_t words[SHIM_DECODE_WORDS];

			begin(script, ALL_SYNC);
			claim_python(PORT, false);
			CHECK_EQUAL(run(), SHIM_EXIT); /* and nothing was touched: ASan watches */
			CHECK_EQUAL(shim_decode(vcpu, words), 6);
			CHECK_EQUAL(words[5], lies[i].offset);
			CHECK(shim_answer(vcpu, (const uint8_t *)"x", 1) < 0);
			fake.pending = false;
			end();
		}
	}
}

static void lying_mmio(void)
{
	const struct step script[] = { { STEP_READ, BASE, 9 }, { STEP_READ, BASE, UINT32_MAX }, { 0 } };

	begin(script, ALL_SYNC);
	claim_python(BASE, true);
	CHECK_EQUAL(run(), SHIM_EXIT);
	fake.pending = false;
	CHECK_EQUAL(run(), SHIM_EXIT);
	fake.pending = false;
	end();
}

static void nothing_to_do(void)
{
	const struct step script[] = { { STEP_OUT, PORT, 1, 0, "" }, { STEP_OUT, PORT, 0, 1, "" },
				       { STEP_EXIT, 0, 5 }, { 0 } };
	struct shim_counter counter = { 0 };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(shim_bus_claim(bus, false, PORT, 1, SHIM_OWNER_COUNTER, 0, &counter), 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, 5);
	end();
}

static void decode_never_exceeds_its_words(void)
{
	uint64_t words[SHIM_DECODE_WORDS + 1];
	const struct step script[] = { { 0 } };

	begin(script, ALL_SYNC);
	for (unsigned reason = 0; reason < 100; reason++) {
		words[SHIM_DECODE_WORDS] = 0x5a5a;
		memset(&vcpu->run->hw, 0xff, 200); /* every count in the union is absurd */
		vcpu->run->exit_reason = reason;
		CHECK(shim_decode(vcpu, words) <= SHIM_DECODE_WORDS);
		CHECK_EQUAL(words[0], reason);
		CHECK_EQUAL(words[SHIM_DECODE_WORDS], 0x5a5a);
	}
	end();
}

/* ---- failures of KVM_RUN */

static void eintr_of_a_foreign_signal(void)
{
	const struct step script[] = { { STEP_FAIL, 0, EINTR }, { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	vcpu->run->exit_reason = KVM_EXIT_MMIO; /* stale, and full of lies */
	CHECK_EQUAL(run(), SHIM_SIGNAL);
	CHECK_EQUAL(vcpu->counters->exits[KVM_EXIT_MMIO], 0);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, 5);
	end();
}

static volatile sig_atomic_t handled;

static void on_usr1(int number)
{
	(void)number;
	handled++;
}

static void raise_usr1(void)
{
	raise(SIGUSR1);
}

static void foreign_signals_are_not_lost(void)
{
	const struct step script[] = { { STEP_CALL_EARLY, 0, 0, 0, NULL, raise_usr1 },
				       { STEP_OUT, 0x60, 1, 1, "" }, { STEP_EXIT, 0, 5 }, { 0 } };
	struct timespec pause = { .tv_nsec = 2000000 };

	nanosleep(&pause, NULL); /* so that the run looks for handlers again */
	CHECK(signal(SIGUSR1, on_usr1) != SIG_ERR);
	begin(script, ALL_SYNC);
	CHECK_EQUAL(shim_bus_claim(bus, false, 0x60, 1, SHIM_OWNER_PYTHON, 0, NULL), 0);
	CHECK_EQUAL(run(), SHIM_SIGNAL); /* between the caller's last look and KVM's */
	CHECK_EQUAL(handled, 1);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_ACCESS);
	raise(SIGUSR1); /* after the caller's last look, before the vCPU is the thread's */
	CHECK_EQUAL(shim_resume(vcpu), SHIM_SIGNAL);
	CHECK_EQUAL(handled, 2);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, KVM_EXIT_HLT);
	end();
	signal(SIGUSR1, SIG_DFL);
}

static void eagain_enters_again(void)
{
	const struct step script[] = { { STEP_FAIL, 0, EAGAIN }, { STEP_FAIL_EARLY, 0, EAGAIN },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(fake.runs, 3);
	end();
}

static void enomem_of_the_first_run_is_tried_once_more(void)
{
	const struct step once[] = { { STEP_FAIL_EARLY, 0, ENOMEM }, { STEP_EXIT, 0, 5 }, { 0 } };
	const struct step twice[] = { { STEP_FAIL_EARLY, 0, ENOMEM }, { STEP_FAIL, 0, ENOMEM }, { 0 } };
	const struct step late[] = { { STEP_EXIT, 0, 5 }, { STEP_FAIL, 0, ENOMEM }, { 0 } };

	begin(once, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	end();
	begin(twice, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_ERROR);
	CHECK_EQUAL(vcpu->report.value, ENOMEM);
	end();
	begin(late, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(run(), SHIM_ERROR);
	CHECK_EQUAL(vcpu->report.value, ENOMEM);
	end();
}

static void memory_faults(void)
{
	const struct step with[] = { { STEP_FAULT, 0x1234000 }, { 0 } };
	const struct step without[] = { { STEP_FAIL, 0, EFAULT }, { 0 } };
	uint64_t words[SHIM_DECODE_WORDS];

	begin(with, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(shim_decode(vcpu, words), 4);
	CHECK_EQUAL(words[0], KVM_EXIT_MEMORY_FAULT);
	CHECK_EQUAL(words[2], 0x1234000);
	end();
	begin(without, ALL_SYNC);
	vcpu->run->exit_reason = KVM_EXIT_MEMORY_FAULT; /* of an earlier time */
	CHECK_EQUAL(run(), SHIM_ERROR);
	CHECK_EQUAL(vcpu->report.value, EFAULT);
	end();
}

static void other_errors(void)
{
	static const int errors[] = { EIO, EINVAL, ENXIO, EBADF, EPERM, ENOSYS };

	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		const struct step script[] = { { STEP_FAIL, 0, errors[i] }, { STEP_EXIT, 0, 5 }, { 0 } };

		begin(script, ALL_SYNC);
		vcpu->run->exit_reason = KVM_EXIT_IO;
		CHECK_EQUAL(run(), SHIM_ERROR);
		CHECK_EQUAL(vcpu->report.value, errors[i]);
		CHECK_EQUAL(run(), SHIM_EXIT); /* and it can be run again */
		end();
	}
}

/* ---- registers */

static void registers_are_complete_and_edits_arrive(void)
{
	const struct step script[] = { { STEP_OUT, 0x10, 1, 1, "a" }, { STEP_EXIT, 0, 5 },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	for (size_t i = 0; i < 2; i++) {
		begin(script, sync_modes[i]);
		CHECK_EQUAL(run(), SHIM_EXIT);
		CHECK(fake.pending);
		CHECK_EQUAL(reg(KVM_SYNC_X86_REGS), 0x1001);
		CHECK(!fake.pending);
		CHECK_EQUAL(fake.guest_entered, 1);
		vcpu->regs->regs.rbx = 0x77;
		CHECK_EQUAL(shim_sync(vcpu, KVM_SYNC_X86_SREGS), 0);
		vcpu->regs->sregs.cr2 = 0x88;
		CHECK_EQUAL(run(), SHIM_EXIT);
		CHECK_EQUAL(fake.regs.rbx, 0x77);
		CHECK_EQUAL(fake.sregs.cr2, 0x88);
		CHECK_EQUAL(fake.set_regs, sync_modes[i] ? 0 : 1); /* the page costs no call */
		CHECK_EQUAL(reg(KVM_SYNC_X86_REGS), 0x1002);
		vcpu->regs->regs.rbx = 0x99;
		CHECK_EQUAL(shim_settle(vcpu, 0), 0); /* before another ioctl */
		CHECK_EQUAL(fake.regs.rbx, 0x99);
		end();
	}
}

static void untouched_registers_cost_nothing(void)
{
	const struct step script[] = { { STEP_OUT, 0x10, 1, 1, "a" }, { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(fake.runs, 2);
	CHECK_EQUAL(vcpu->run->kvm_valid_regs, 0);
	CHECK_EQUAL(fake.set_regs, 0);
	end();
}

static void edits_that_an_entry_did_not_take(void)
{
	static const int errors[] = { EINTR, ENOMEM };

	for (size_t i = 0; i < 2; i++) {
		const struct step script[] = { { STEP_FAIL_EARLY, 0, errors[i] },
					       { STEP_EXIT, 0, 5 }, { 0 } };

		begin(script, ALL_SYNC);
		reg(KVM_SYNC_X86_REGS);
		vcpu->regs->regs.rbx = 5;
		if (errors[i] == EINTR) {
			CHECK_EQUAL(run(), SHIM_SIGNAL);
			CHECK_EQUAL(fake.regs.rbx, 5);
			CHECK_EQUAL(reg(KVM_SYNC_X86_REGS), 0x1000);
			CHECK_EQUAL(vcpu->regs->regs.rbx, 5);
			CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
		} else {
			CHECK_EQUAL(run(), SHIM_EXIT);
		}
		CHECK_EQUAL(fake.regs.rbx, 5);
		end();
	}
}

/* INIT or SIPI has set the registers: edits from before must not come on top. */
static void edits_before_a_sipi(void)
{
	const struct step script[] = { { STEP_FAIL_EARLY, 0, EAGAIN }, { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	reg(KVM_SYNC_X86_REGS);
	vcpu->regs->regs.rbx = 5;
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(fake.regs.rbx, 0);
	CHECK_EQUAL(fake.regs.rip, 0x1001);
	end();
}

/* An edit made while an access is unfinished: the instruction comes first, the edit on top. */
static void edits_of_an_unfinished_instruction(void)
{
	const struct step script[] = { { STEP_IN, PORT, 1, 1 }, { STEP_EXIT, 0, 5 }, { 0 } };

	for (size_t i = 0; i < 2; i++) {
		begin(script, sync_modes[i]);
		claim_python(PORT, false);
		CHECK_EQUAL(run(), SHIM_ACCESS);
		reg(KVM_SYNC_X86_REGS);
		CHECK(fake.pending);
		vcpu->regs->regs.rbx = 0x66;
		vcpu->regs->regs.rip = 0x4000;
		fake.regs.rax = 0; /* what completion will change: see below */
		vcpu->report.value = 0x21;
		CHECK_EQUAL(shim_resume(vcpu), SHIM_SIGNAL);
		CHECK_EQUAL(fake.read[0], 0x21);
		CHECK_EQUAL(fake.guest_entered, 1);
		CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
		CHECK_EQUAL(fake.regs.rbx, 0x66);
		CHECK_EQUAL(fake.regs.rip, 0x4001);
		end();
	}
}

/* enter() elsewhere: what is unfinished is finished before, never after. */
static void settling_ends_the_instruction(void)
{
	const struct step script[] = {
		{ STEP_READ, BASE + 0xffd, 3, .more = true },
		{ STEP_READ, BASE + 0x1000, 5, .more = true },
		{ STEP_IN, PORT, 1, 4 },
		{ STEP_EXIT, 0, 5 }, { 0 },
	};

	begin(script, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(shim_settle(vcpu, 0), 0);
	CHECK_EQUAL(vcpu->pending, SHIM_PENDING_REPLY); /* reading an MSR takes nobody's answer */
	CHECK_EQUAL(shim_settle(vcpu, KVM_SYNC_X86_REGS), 0);
	CHECK_EQUAL(fake.pending, 0);
	CHECK_EQUAL(fake.guest_entered, 1);
	CHECK_EQUAL(fake.read_length, 12);
	for (unsigned i = 0; i < 12; i++)
		CHECK_EQUAL(fake.read[i], 0xff);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, 5);
	end();
}

/* ---- the ring */

static void ring_keeps_order_and_loses_nothing(void)
{
	const struct step script[] = {
		{ STEP_OUT, PORT, 1, 5, "abcde" }, { STEP_WRITE, BASE, 4, 0, "wxyz" },
		{ STEP_OUT, PORT, 2, 1, "fg" }, { STEP_EXIT, 0, 5 }, { 0 },
	};
	char got[32] = "";
	unsigned length = 0;
	int stop;

	begin(script, ALL_SYNC);
	CHECK_EQUAL(shim_bus_claim(bus, false, PORT, 1, SHIM_OWNER_RING, 0, NULL), 0);
	CHECK_EQUAL(shim_bus_claim(bus, true, BASE, 4, SHIM_OWNER_RING, 0, NULL), 0);
	CHECK_EQUAL(run(), SHIM_RING); /* none yet */
	CHECK_EQUAL(vcpu->ring_length, 0);
	CHECK_EQUAL(shim_vcpu_ring(vcpu, 2), 0);
	CHECK_EQUAL(shim_vcpu_ring(vcpu, 9), 0); /* once only */
	CHECK_EQUAL(vcpu->ring_size, 2);
	do {
		stop = shim_resume(vcpu);
		for (unsigned i = 0; i < vcpu->ring_length; i++) {
			const struct shim_record *record = &vcpu->ring[i];
			unsigned size = record->size & 0xff;

			CHECK_EQUAL(record->size >> 63, record->address == BASE);
			memcpy(got + length, &record->value, size);
			length += size;
		}
		vcpu->ring_length = 0;
	} while (stop == SHIM_RING);
	CHECK_EQUAL(stop, SHIM_EXIT);
	CHECK_EQUAL(length, 11);
	CHECK(!memcmp(got, "abcdewxyzfg", 11));
	end();
}

/* ---- budgets and kicks */

static void kick_self(void)
{
	shim_kick(vcpu);
}

static void exit_budget(void)
{
	const struct step script[] = { { STEP_OUT, PORT, 1, 3, "abc" }, { STEP_OUT, PORT, 1, 1, "d" },
				       { STEP_EXIT, 0, 5 }, { 0 } };
	struct shim_counter counter = { 0 };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(shim_bus_claim(bus, false, PORT, 1, SHIM_OWNER_COUNTER, 0, &counter), 0);
	CHECK_EQUAL(shim_run(vcpu, -1, 1), SHIM_EXIT_LIMIT);
	CHECK_EQUAL(counter.writes, 3);
	CHECK_EQUAL(shim_run(vcpu, -1, 2), SHIM_EXIT);
	CHECK_EQUAL(counter.writes, 4);
	end();
}

static void kicks_are_never_lost(void)
{
	const struct step before[] = { { STEP_EXIT, 0, 5 }, { 0 } };
	const struct step between[] = { { STEP_CALL_EARLY, .call = kick_self },
					{ STEP_EXIT, 0, 5 }, { 0 } };
	const struct step inside[] = { { STEP_CALL, .call = kick_self }, { STEP_EXIT, 0, 5 }, { 0 } };
	const struct step after[] = { { STEP_IN, PORT, 1, 1 }, { STEP_EXIT, 0, 5 }, { 0 } };

	begin(before, ALL_SYNC); /* before the run */
	shim_kick(vcpu);
	shim_kick(vcpu);
	CHECK_EQUAL(run(), SHIM_KICKED);
	CHECK_EQUAL(fake.guest_entered, 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	end();
	begin(between, ALL_SYNC); /* after our last instruction, before KVM looks */
	CHECK_EQUAL(run(), SHIM_KICKED);
	CHECK_EQUAL(fake.guest_entered, 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	end();
	begin(inside, ALL_SYNC); /* in the guest */
	CHECK_EQUAL(run(), SHIM_KICKED);
	CHECK_EQUAL(run(), SHIM_EXIT);
	end();
	begin(after, ALL_SYNC); /* in a handler, whose registers are looked at, too */
	claim_python(PORT, false);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	shim_kick(vcpu);
	reg(KVM_SYNC_X86_REGS);
	vcpu->report.value = 0x12;
	CHECK_EQUAL(shim_resume(vcpu), SHIM_KICKED);
	CHECK_EQUAL(fake.read[0], 0x12); /* the access was finished first */
	CHECK_EQUAL(run(), SHIM_EXIT);
	end();
}

static void a_kick_survives_completion(void)
{
	const struct step script[] = {
		{ STEP_OUT, 0x10, 1, 1, "a" }, { STEP_CALL_EARLY, .call = kick_self },
		{ STEP_EXIT, 0, 5 }, { 0 },
	};

	begin(script, ALL_SYNC);
	CHECK_EQUAL(run(), SHIM_EXIT);
	reg(KVM_SYNC_X86_REGS); /* the kick comes in the middle of this */
	CHECK_EQUAL(run(), SHIM_KICKED);
	CHECK_EQUAL(run(), SHIM_EXIT);
	end();
}

static void timeouts(void)
{
	const struct step script[] = { { 0 } };

	begin(script, ALL_SYNC);
	CHECK_EQUAL(shim_run(vcpu, 0, UINT64_MAX), SHIM_TIMEOUT);
	CHECK_EQUAL(shim_run(vcpu, 3000000, UINT64_MAX), SHIM_TIMEOUT);
	CHECK_EQUAL(shim_run(vcpu, 1000000, UINT64_MAX), SHIM_TIMEOUT);
	end();
}

static void timeout_while_python_has_it(void)
{
	const struct step script[] = { { STEP_OUT, PORT, 1, 1, "a" }, { 0 } };

	begin(script, ALL_SYNC);
	claim_python(PORT, false);
	CHECK_EQUAL(shim_run(vcpu, 2000000, UINT64_MAX), SHIM_ACCESS);
	usleep(10000); /* the timer's signal finds nobody running */
	CHECK_EQUAL(shim_resume(vcpu), SHIM_TIMEOUT);
	end();
}

/* ---- one run at a time */

static void refusals(void)
{
	const struct step script[] = { { STEP_OUT, PORT, 1, 1, "a" }, { STEP_EXIT, 0, 5 }, { 0 } };

	begin(script, ALL_SYNC);
	claim_python(PORT, false);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	CHECK_EQUAL(run(), SHIM_BUSY);
	CHECK_EQUAL(vcpu->report.value, 'a'); /* the first one's */
	CHECK_EQUAL(vcpu->stop, SHIM_ACCESS);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
	CHECK_EQUAL(shim_vcpu_close(vcpu), 0);
	CHECK_EQUAL(run(), SHIM_CLOSED);
	CHECK_EQUAL(shim_sync(vcpu, KVM_SYNC_X86_REGS), -EBADF);
	CHECK_EQUAL(shim_settle(vcpu, 0), -EBADF);
	CHECK_EQUAL(shim_vcpu_close(vcpu), 0);
	CHECK_EQUAL(vcpu->regs->regs.rip, 0); /* still mapped */
	end();
}

static void closing_from_a_handler(void)
{
	const struct step script[] = { { STEP_OUT, PORT, 1, 1, "a" }, { 0 } };

	begin(script, ALL_SYNC);
	claim_python(PORT, false);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	CHECK_EQUAL(shim_vcpu_close(vcpu), 0);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_CLOSED);
	end();
}

static void *sync_from_another_thread(void *result)
{
	*(int *)result = shim_sync(vcpu, KVM_SYNC_X86_REGS);
	return NULL;
}

static void registers_of_a_run_are_its_owners(void)
{
	const struct step script[] = { { STEP_OUT, PORT, 1, 1, "a" }, { STEP_EXIT, 0, 5 }, { 0 } };
	pthread_t thread;
	int result;

	begin(script, ALL_SYNC);
	claim_python(PORT, false);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	pthread_create(&thread, NULL, sync_from_another_thread, &result);
	pthread_join(thread, NULL);
	CHECK_EQUAL(result, -EBUSY);
	CHECK_EQUAL(shim_sync(vcpu, KVM_SYNC_X86_REGS), 0); /* its own handler may */
	CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
	pthread_create(&thread, NULL, sync_from_another_thread, &result);
	pthread_join(thread, NULL);
	CHECK_EQUAL(result, 0);
	end();
}

/* ---- sinks */

static void a_full_pipe_loses_nothing(void)
{
	static struct step script[6000];
	static uint8_t bytes[6000], got[70000];
	struct shim_device *console;
	struct shim_sink *sink;
	unsigned length = 0, sent;
	int ends[2], runs = 0, stop;

	for (unsigned i = 0; i < 5999; i++) {
		bytes[i] = i % 251;
		if (bytes[i] == '\n')
			bytes[i] = 1;
		script[i] = (struct step){ STEP_OUT, 0xe9, 1, 1, &bytes[i] };
	}
	script[5999] = (struct step){ STEP_EXIT, 0, 5 };
	/* The end of the script is the array's: nothing is run after the exit. */
	CHECK_EQUAL(pipe(ends), 0);
	fcntl(ends[1], F_SETPIPE_SZ, 4096);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	sent = write(ends[1], got, 4096); /* full from the start */
	begin(script, ALL_SYNC);
	sink = shim_sink_new(ends[1]);
	console = shim_debugcon_new(sink);
	CHECK_EQUAL(shim_bus_claim(bus, false, 0xe9, 1, SHIM_OWNER_DEVICE, 0, console), 0);
	do { /* 20 runs against a reader that has stopped; then it reads */
		ssize_t n;

		stop = shim_run(vcpu, 1000000, UINT64_MAX);
		CHECK(sink->length <= SHIM_SINK_FULL + 2);
		if (++runs > 20 && (n = read(ends[0], got + length, 4096)) > 0)
			length += n;
	} while (stop == SHIM_TIMEOUT && runs < 2000);
	CHECK_EQUAL(stop, SHIM_EXIT);
	while (shim_sink_flush(sink) == -EAGAIN || length < sent + 5999) {
		ssize_t n = read(ends[0], got + length, 4096);

		if (n > 0)
			length += n;
	}
	CHECK_EQUAL(length, sent + 5999);
	CHECK(!memcmp(got + sent, bytes, 5999));
	end();
	shim_device_free(console);
	shim_sink_free(sink);
	close(ends[0]);
	close(ends[1]);
}

static void a_kick_ends_the_wait_for_a_reader(void)
{
	static struct step script[5000];
	struct shim_device *console;
	struct shim_sink *sink;
	char fill[4096] = { 0 };
	int ends[2];

	for (unsigned i = 0; i < 4999; i++)
		script[i] = (struct step){ STEP_OUT, 0xe9, 1, 1, "x" };
	CHECK_EQUAL(pipe(ends), 0);
	fcntl(ends[1], F_SETPIPE_SZ, 4096);
	CHECK_EQUAL(write(ends[1], fill, 4096), 4096);
	begin(script, ALL_SYNC);
	sink = shim_sink_new(ends[1]);
	console = shim_debugcon_new(sink);
	CHECK_EQUAL(shim_bus_claim(bus, false, 0xe9, 1, SHIM_OWNER_DEVICE, 0, console), 0);
	CHECK_EQUAL(shim_run(vcpu, 400000000, UINT64_MAX), SHIM_TIMEOUT);
	shim_kick(vcpu);
	CHECK_EQUAL(run(), SHIM_KICKED);
	CHECK(vcpu->stalled || sink->length);
	end();
	shim_device_free(console);
	shim_sink_free(sink);
	close(ends[0]);
	close(ends[1]);
}

static void a_reader_that_is_gone(void)
{
	const struct step script[] = { { STEP_OUT, 0xe9, 4, 1, "ab\nc" }, { STEP_OUT, 0xe9, 1, 1, "\n" },
				       { STEP_EXIT, 0, 5 }, { 0 } };
	struct shim_device *console;
	struct shim_sink *sink;
	int ends[2];

	CHECK_EQUAL(pipe(ends), 0);
	close(ends[0]);
	begin(script, ALL_SYNC);
	sink = shim_sink_new(ends[1]);
	console = shim_debugcon_new(sink);
	CHECK_EQUAL(shim_bus_claim(bus, false, 0xe9, 1, SHIM_OWNER_DEVICE, 0, console), 0);
	CHECK_EQUAL(run(), SHIM_SINK_ERROR);
	CHECK_EQUAL(vcpu->report.value, EPIPE);
	CHECK_EQUAL(run(), SHIM_EXIT); /* said once */
	end();
	shim_device_free(console);
	shim_sink_free(sink);
	close(ends[1]);
}

static void memory_sinks_are_drained(void)
{
	static struct step script[10000];
	struct shim_device *console;
	struct shim_sink *sink;
	uint8_t out[SHIM_SINK_SIZE];
	unsigned total = 0, drains = 0;
	int stop;

	for (unsigned i = 0; i < 9999; i++)
		script[i] = (struct step){ STEP_OUT, 0xe9, 1, 1, "x" };
	script[9999] = (struct step){ STEP_EXIT, 0, 5 };
	begin(script, ALL_SYNC);
	sink = shim_sink_new(-1);
	console = shim_debugcon_new(sink);
	CHECK_EQUAL(shim_bus_claim(bus, false, 0xe9, 1, SHIM_OWNER_DEVICE, 0, console), 0);
	for (stop = run(); stop == SHIM_DRAIN; stop = shim_resume(vcpu), drains++)
		total += shim_sink_take(sink, out, sizeof(out));
	CHECK_EQUAL(stop, SHIM_EXIT);
	CHECK_EQUAL(total + shim_sink_take(sink, out, sizeof(out)), 9999);
	CHECK_EQUAL(sink->total, 9999);
	CHECK(drains >= 2);
	end();
	shim_device_free(console);
	shim_sink_free(sink);
}

/* ---- the table of claims */

static void claims(void)
{
	struct shim_bus *table = shim_bus_new();
	struct shim_vcpu looker = { .bus = table };

	CHECK_EQUAL(shim_bus_claim(table, false, 0x10, 0, 0, 0, NULL), -EINVAL);
	CHECK_EQUAL(shim_bus_claim(table, false, 0xffff, 2, 0, 0, NULL), -EINVAL);
	CHECK_EQUAL(shim_bus_claim(table, true, UINT64_MAX, 2, 0, 0, NULL), -EINVAL);
	CHECK_EQUAL(shim_bus_claim(table, true, UINT64_MAX, 1, 0, 0, NULL), 0);
	for (unsigned i = 0; i < 200; i++)
		CHECK_EQUAL(shim_bus_claim(table, true, (i * 37 % 200) * 16, 8, SHIM_OWNER_PYTHON,
					   i * 37 % 200, NULL), 0);
	for (unsigned i = 0; i < 200 * 16; i++) {
		const struct shim_range *range = shim_bus_find(&looker, true, i);

		CHECK_EQUAL(range != NULL, i % 16 < 8);
		if (range)
			CHECK_EQUAL(range->handler, i / 16);
	}
	CHECK_EQUAL(shim_bus_claim(table, true, 4, 16, 0, 0, NULL), -EEXIST);
	CHECK_EQUAL(shim_bus_release(table, true, 4), -ENOENT);
	for (unsigned i = 0; i < 200; i++)
		CHECK_EQUAL(shim_bus_release(table, true, (i * 73 % 200) * 16), 0);
	CHECK(!shim_bus_find(&looker, true, 0));
	shim_bus_free(table);
	shim_bus_free(NULL);
}

/* What a vCPU may be looking at stays: until it is through, and no longer (ASan has the tables). */
static void reclaiming(void)
{
	struct shim_bus *table = shim_bus_new();
	struct shim_vcpu one = { .bus = table }, other = { .bus = table };
	const struct shim_range *found;
	uint64_t oldest[2], before;

	shim_bus_join(table, &one);
	shim_bus_join(table, &other);
	CHECK_EQUAL(shim_bus_claim(table, false, 0x10, 1, SHIM_OWNER_PYTHON, 7, NULL), 0);
	found = shim_bus_find(&one, false, 0x10);
	before = shim_bus_generation(table);
	CHECK_EQUAL(shim_bus_release(table, false, 0x10), 0);
	CHECK_EQUAL(shim_bus_generation(table), before + 1);
	shim_bus_reclaim(table, oldest);
	CHECK_EQUAL(oldest[0], before);
	CHECK_EQUAL(oldest[1], before);
	CHECK_EQUAL(found->handler, 7);
	CHECK(!shim_bus_find(&other, false, 0x10)); /* began later: sees the newer */
	shim_bus_reclaim(table, oldest);
	CHECK_EQUAL(found->handler, 7);
	one.looking = 0;
	shim_bus_reclaim(table, oldest);
	CHECK_EQUAL(oldest[0], before + 1);
	other.looking = 0;
	other.ring_length = 1, other.ring_looking = before; /* it holds a record of that time */
	shim_bus_reclaim(table, oldest);
	CHECK_EQUAL(oldest[0], before + 1);
	CHECK_EQUAL(oldest[1], before);
	shim_bus_part(table, &one);
	shim_bus_part(table, &other);
	shim_bus_reclaim(table, oldest);
	CHECK_EQUAL(oldest[1], before + 1);
	shim_bus_free(table);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN); /* as Python does */
	unclaimed_reads_are_all_ones();
	reads_of_counters_and_rings_are_all_ones();
	answers_reach_the_guest();
	python_gets_strings_element_by_element();
	a_handlers_exception_ends_a_string();
	c_devices();
	what_is_left_of_a_string_is_forgotten();
	fragments();
	lying_pages();
	lying_mmio();
	nothing_to_do();
	decode_never_exceeds_its_words();
	eintr_of_a_foreign_signal();
	foreign_signals_are_not_lost();
	eagain_enters_again();
	enomem_of_the_first_run_is_tried_once_more();
	memory_faults();
	other_errors();
	registers_are_complete_and_edits_arrive();
	untouched_registers_cost_nothing();
	edits_that_an_entry_did_not_take();
	edits_before_a_sipi();
	edits_of_an_unfinished_instruction();
	settling_ends_the_instruction();
	ring_keeps_order_and_loses_nothing();
	exit_budget();
	kicks_are_never_lost();
	a_kick_survives_completion();
	timeouts();
	timeout_while_python_has_it();
	refusals();
	closing_from_a_handler();
	registers_of_a_run_are_its_owners();
	a_full_pipe_loses_nothing();
	a_kick_ends_the_wait_for_a_reader();
	a_reader_that_is_gone();
	memory_sinks_are_drained();
	claims();
	reclaiming();
	puts("dispatch: ok");
	return 0;
}
