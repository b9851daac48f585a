/*
 * The ring of coalesced writes over a scripted KVM: everybody gets theirs, in order, before the exit
 * that comes after them; nothing is lost or handed out twice, whatever stops the run.
 */
#define _GNU_SOURCE /* memfd_create, F_SETPIPE_SZ */
#include <pthread.h>

#include "fake_kvm.h"

#define DEVICE 0xd0000000
#define PYTHON 0xd0001000
#define BATCH 0xd0002000
#define COUNTED 0xd0003000
#define NOBODY 0xd0004000

static char trace[4096];
static unsigned traced;
static int device_stop = SHIM_CONTINUE;

static int on_access(struct shim_device *device, struct shim_vcpu *who, uint64_t offset,
		     uint8_t *data, unsigned size, bool is_write)
{
	(void)device, (void)who, (void)offset, (void)size;
	CHECK(is_write && traced < sizeof(trace));
	trace[traced++] = data[0];
	return device_stop;
}

static struct shim_device device = { .access = on_access };
static struct shim_counter counter;

static void begin_coalesced(const struct step *script)
{
	begin(script, ALL_SYNC);
	memset(trace, 0, sizeof(trace));
	traced = 0;
	device_stop = SHIM_CONTINUE;
	counter = (struct shim_counter){ 0 };
	CHECK_EQUAL(shim_bus_claim(bus, true, DEVICE, 8, SHIM_OWNER_DEVICE, 0, &device), 0);
	CHECK_EQUAL(shim_bus_claim(bus, true, PYTHON, 8, SHIM_OWNER_PYTHON, 3, NULL), 0);
	CHECK_EQUAL(shim_bus_claim(bus, true, BATCH, 8, SHIM_OWNER_RING, 5, NULL), 0);
	CHECK_EQUAL(shim_bus_claim(bus, true, COUNTED, 8, SHIM_OWNER_COUNTER, 0, &counter), 0);
	CHECK_EQUAL(shim_bus_claim(bus, false, 0x80, 1, SHIM_OWNER_DEVICE, 0, &device), 0);
	CHECK_EQUAL(shim_bus_coalesce(bus, RING_PAGE, RUN_SIZE), 0);
}

/* Runs on over Python's stops, tracing what it gets, to the next stop that ends a run. */
static int run_on(void)
{
	int stop = run();

	while (stop < SHIM_EXIT) {
		if (stop == SHIM_ACCESS)
			trace[traced++] = vcpu->report.value;
		if (stop == SHIM_RING)
			CHECK_EQUAL(shim_vcpu_ring(vcpu, 4), 0);
		stop = shim_resume(vcpu);
	}
	return stop;
}

static void the_page_must_be_in_the_mapping(void)
{
	struct shim_bus *other = shim_bus_new();

	CHECK_EQUAL(shim_bus_coalesce(other, 0, RUN_SIZE), -EINVAL);
	CHECK_EQUAL(shim_bus_coalesce(other, 3, RUN_SIZE), -EINVAL);
	CHECK_EQUAL(shim_bus_coalesce(other, UINT64_MAX / 4096, RUN_SIZE), -EINVAL);
	CHECK_EQUAL(shim_bus_coalesce(other, 1, 4095), -EINVAL);
	CHECK_EQUAL(shim_bus_coalesce(other, 2, RUN_SIZE), 0);
	shim_bus_free(other);
}

static void owners_get_their_writes_in_order_and_first(void)
{
	const struct step script[] = {
		{ STEP_COALESCE, DEVICE, 4, 0, "aAAA" }, { STEP_COALESCE, PYTHON + 4, 2, 0, "bB" },
		{ STEP_COALESCE, COUNTED, 1, 0, "x" }, { STEP_COALESCE, 0x80, 1, 1, "c" },
		{ STEP_COALESCE, BATCH, 8, 0, "dDDDDDDD" }, { STEP_COALESCE, PYTHON, 8, 0, "eEEEEEEE" },
		{ STEP_WRITE, DEVICE, 1, 0, "f" }, { STEP_EXIT, 0, 5 }, { 0 },
	};

	begin_coalesced(script);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	CHECK(!strcmp(trace, "a")); /* and nothing that comes later */
	CHECK_EQUAL(vcpu->report.handler, 3);
	CHECK_EQUAL(vcpu->report.address, PYTHON + 4);
	CHECK_EQUAL(vcpu->report.size, 2);
	CHECK_EQUAL(vcpu->report.is_write, 1);
	CHECK_EQUAL(vcpu->report.value, 'b' | 'B' << 8);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_RING);
	CHECK_EQUAL(shim_vcpu_ring(vcpu, 4), 0);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_ACCESS);
	CHECK_EQUAL(vcpu->ring_length, 1);
	CHECK_EQUAL(vcpu->ring[0].address, BATCH);
	CHECK_EQUAL(vcpu->ring[0].size, 8 | 5 << 16 | 1ULL << 63);
	CHECK(!memcmp(&vcpu->ring[0].value, "dDDDDDDD", 8));
	CHECK(!memcmp(&vcpu->report.value, "eEEEEEEE", 8));
	CHECK(!strcmp(trace, "ac"));
	CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
	CHECK(!strcmp(trace, "acf"));
	CHECK_EQUAL(counter.writes, 1);
	CHECK_EQUAL(vcpu->counters->exits[KVM_EXIT_MMIO], 1);
	CHECK_EQUAL(fake.runs, 2);
	end();
}

static void reads_come_after_the_writes(void)
{
	const struct step script[] = { { STEP_COALESCE, PYTHON, 1, 0, "w" }, { STEP_READ, PYTHON, 4 },
				       { STEP_EXIT, 0, 5 }, { 0 } };

	begin_coalesced(script);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	CHECK_EQUAL(vcpu->report.is_write, 1);
	vcpu->report.value = 0x99; /* not an answer */
	CHECK_EQUAL(shim_resume(vcpu), SHIM_ACCESS);
	CHECK_EQUAL(vcpu->report.is_write, 0);
	vcpu->report.value = 0x04030201;
	CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
	CHECK(!memcmp(fake.read, "\1\2\3\4", 4));
	end();
}

/* Three times around, from every start. */
static void wrap_around(void)
{
	static struct step script[RING_RECORDS * 3 + 2];
	static char letters[RING_RECORDS * 3];

	for (unsigned start = 0; start < RING_RECORDS; start++) {
		unsigned n = RING_RECORDS * 3;

		for (unsigned i = 0; i < n; i++) {
			letters[i] = 1 + i % 97;
			script[i] = (struct step){ STEP_COALESCE, i % 5 ? DEVICE : PYTHON, 1, 0,
						   &letters[i] };
		}
		script[n] = (struct step){ STEP_EXIT, 0, 5 };
		begin_coalesced(script);
		coalesced_ring()->first = coalesced_ring()->last = start;
		CHECK_EQUAL(run_on(), SHIM_EXIT);
		CHECK_EQUAL(traced, n);
		CHECK(!memcmp(trace, letters, n));
		CHECK_EQUAL(coalesced_ring()->first, coalesced_ring()->last);
		CHECK_EQUAL(vcpu->counters->exits[KVM_EXIT_MMIO], 3); /* each time 169 filled it */
		end();
	}
}

static void writes_of_nobody_end_the_run_one_by_one(void)
{
	const struct step script[] = {
		{ STEP_COALESCE, NOBODY, 2, 0, "ab" }, { STEP_COALESCE, 0x99, 1, 1, "c" },
		{ STEP_COALESCE, DEVICE, 1, 0, "d" }, { STEP_OUT, 0x98, 1, 1, "e" },
		{ STEP_EXIT, 0, 5 }, { 0 },
	};

	begin_coalesced(script);
	CHECK_EQUAL(run(), SHIM_WRITE);
	CHECK_EQUAL(vcpu->report.handler, 1);
	CHECK_EQUAL(vcpu->report.address, NOBODY);
	CHECK_EQUAL(vcpu->report.size, 2);
	CHECK_EQUAL(vcpu->report.value, 'a' | 'b' << 8);
	CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"x", 1), -EINVAL);
	CHECK_EQUAL(shim_sync(vcpu, KVM_SYNC_X86_REGS), 0); /* looking changes nothing */
	CHECK_EQUAL(run(), SHIM_WRITE);
	CHECK_EQUAL(vcpu->report.handler, 0);
	CHECK_EQUAL(vcpu->report.address, 0x99);
	CHECK_EQUAL(traced, 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK(!strcmp(trace, "d"));
	CHECK_EQUAL(vcpu->run->io.port, 0x98);
	CHECK_EQUAL(fake.runs, 1);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, 5);
	end();
}

static void a_devices_stop_keeps_the_rest(void)
{
	const struct step script[] = {
		{ STEP_COALESCE, DEVICE, 1, 0, "a" }, { STEP_COALESCE, DEVICE, 1, 0, "b" },
		{ STEP_EXIT, 0, 5 }, { 0 },
	};

	begin_coalesced(script);
	device_stop = SHIM_DEBUG_EXIT;
	CHECK_EQUAL(run(), SHIM_DEBUG_EXIT);
	CHECK(!strcmp(trace, "a"));
	CHECK_EQUAL(bus->feeder, 0);
	device_stop = SHIM_CONTINUE;
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK(!strcmp(trace, "ab"));
	end();
}

static void a_handlers_exception_keeps_the_rest(void)
{
	const struct step script[] = {
		{ STEP_COALESCE, PYTHON, 1, 0, "a" }, { STEP_COALESCE, PYTHON, 1, 0, "b" },
		{ STEP_IN, 0x99, 1, 1 }, { STEP_EXIT, 0, 5 }, { 0 },
	};

	begin_coalesced(script);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	CHECK(bus->feeder != 0);
	shim_finish(vcpu);
	CHECK_EQUAL(bus->feeder, 0);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	CHECK_EQUAL(vcpu->report.value, 'b');
	CHECK_EQUAL(shim_resume(vcpu), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, KVM_EXIT_IO);
	CHECK_EQUAL(shim_answer(vcpu, (const uint8_t *)"x", 1), 0);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(fake.read[0], 'x');
	end();
}

/* A kick, a timeout: the run ends with all that the guest wrote handed out. */
static void drained_when_a_run_ends(void)
{
	const struct step script[] = { { STEP_COALESCE, DEVICE, 1, 0, "a" },
				       { STEP_COALESCE, PYTHON, 1, 0, "b" }, { STEP_END } };

	begin_coalesced(script);
	CHECK_EQUAL(shim_run(vcpu, 20000000, UINT64_MAX), SHIM_ACCESS);
	CHECK(!strcmp(trace, "a"));
	CHECK_EQUAL(shim_resume(vcpu), SHIM_TIMEOUT);
	end();
}

static void kick_it(void)
{
	shim_kick(vcpu);
}

static void a_kick_is_not_lost_over_them(void)
{
	const struct step script[] = { { STEP_COALESCE, PYTHON, 1, 0, "a" }, { STEP_CALL, .call = kick_it },
				       { STEP_COALESCE, PYTHON, 1, 0, "b" }, { STEP_END } };

	begin_coalesced(script);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_KICKED);
	CHECK_EQUAL(shim_run(vcpu, 1000000, UINT64_MAX), SHIM_ACCESS);
	CHECK_EQUAL(vcpu->report.value, 'b');
	CHECK_EQUAL(shim_resume(vcpu), SHIM_TIMEOUT);
	end();
}

static void failures_come_after_them(void)
{
	const struct step script[] = { { STEP_COALESCE, PYTHON, 1, 0, "a" }, { STEP_FAIL, 0, EFAULT },
				       { STEP_FAIL, 0, EFAULT }, { 0 } };

	begin_coalesced(script);
	CHECK_EQUAL(run(), SHIM_ACCESS);
	CHECK_EQUAL(shim_resume(vcpu), SHIM_ERROR);
	CHECK_EQUAL(vcpu->report.value, EFAULT);
	end();
}

static void a_ring_that_cannot_be(void)
{
	static const struct {
		uint32_t first, last, length, pio;
		uint64_t address;
	} bad[] = {
		{ RING_RECORDS, 0, 1, 0, 0 }, { 0, RING_RECORDS, 1, 0, 0 },
		{ UINT32_MAX, UINT32_MAX, 1, 0, 0 }, { 0, 1, 0, 0, 0 }, { 0, 1, 9, 0, 0 },
		{ 0, 1, 5, 1, 0 }, { 0, 1, UINT32_MAX, 0, 0 }, { 0, 1, 1, 1, 0x10000 },
	};
	const struct step script[] = { { STEP_EXIT, 0, 5 }, { 0 } };

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		begin_coalesced(script);
		coalesced_ring()->first = bad[i].first;
		coalesced_ring()->last = bad[i].last;
		coalesced_ring()->coalesced_mmio[0].len = bad[i].length;
		coalesced_ring()->coalesced_mmio[0].pio = bad[i].pio;
		coalesced_ring()->coalesced_mmio[0].phys_addr = bad[i].address;
		CHECK_EQUAL(run(), SHIM_ERROR);
		CHECK_EQUAL(vcpu->report.value, EPROTO);
		CHECK_EQUAL(traced, 0);
		CHECK_EQUAL(bus->feeder, 0);
		coalesced_ring()->first = coalesced_ring()->last = 0;
		CHECK_EQUAL(run(), SHIM_EXIT); /* what exited is still there */
		end();
	}
}

/* A console whose pipe is full holds the guest back, and the rest of the ring with it. */
static void a_full_pipe_loses_nothing(void)
{
	static struct step script[160 + 1];
	static char letters[160][8], fill[4096], got[4096 + sizeof(letters)];
	struct shim_device *console;
	struct shim_sink *sink;
	unsigned length = 0;
	int ends[2], runs = 0, stop;

	for (unsigned i = 0; i < 160; i++) {
		memset(letters[i], 'A' + i % 26, 8);
		script[i] = (struct step){ STEP_COALESCE, NOBODY, 8, 0, letters[i] };
	}
	script[160] = (struct step){ STEP_EXIT, 0, 5 };
	CHECK_EQUAL(pipe(ends), 0);
	fcntl(ends[1], F_SETPIPE_SZ, 4096);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	CHECK_EQUAL(write(ends[1], fill, 4096), 4096);
	begin_coalesced(script);
	sink = shim_sink_new(ends[1]);
	console = shim_debugcon_new(sink);
	CHECK_EQUAL(shim_bus_claim(bus, true, NOBODY, 8, SHIM_OWNER_DEVICE, 0, console), 0);
	memset(sink->bytes, '.', SHIM_SINK_FULL - 100);
	sink->length = SHIM_SINK_FULL - 100;
	do { /* three runs against a reader that has stopped; then it reads */
		ssize_t n;

		stop = shim_run(vcpu, 20000000, UINT64_MAX);
		CHECK(sink->length <= SHIM_SINK_FULL + 8);
		if (runs++ < 3) {
			CHECK_EQUAL(stop, SHIM_TIMEOUT);
			CHECK(coalesced_ring()->first != coalesced_ring()->last);
		} else if ((n = read(ends[0], got, 4096)) > 0) {
			length += n;
		}
	} while (stop == SHIM_TIMEOUT && runs < 2000);
	CHECK_EQUAL(stop, SHIM_EXIT);
	while (shim_sink_flush(sink) == -EAGAIN || length < 4096 + SHIM_SINK_FULL - 100 + 160 * 8) {
		ssize_t n = read(ends[0], got, sizeof(got));

		if (n > 0)
			length += n;
	}
	CHECK_EQUAL(length, 4096 + SHIM_SINK_FULL - 100 + 160 * 8);
	end();
	shim_device_free(console);
	shim_sink_free(sink);
	close(ends[0]);
	close(ends[1]);
}

/* ---- another thread hands records out: this vCPU's exit waits */

static int other_stop;

static void *run_here(void *ignored)
{
	(void)ignored;
	other_stop = shim_run(vcpu, -1, UINT64_MAX);
	return NULL;
}

static void an_exit_waits_for_writes_in_other_hands(void)
{
	const struct step script[] = { { STEP_EXIT, 0, 5 }, { 0 } };
	pthread_t thread;

	begin_coalesced(script);
	bus->feeder = 1; /* a thread that is not us */
	pthread_create(&thread, NULL, run_here, NULL);
	while (!fake.runs)
		usleep(100);
	usleep(20000);
	CHECK(vcpu->active);
	CHECK_EQUAL(vcpu->counters->exits[5], 0);
	bus->feeder = 0;
	pthread_join(thread, NULL);
	CHECK_EQUAL(other_stop, SHIM_EXIT);
	CHECK_EQUAL(vcpu->counters->exits[5], 1);
	end();
}

static void a_kick_ends_that_wait(void)
{
	const struct step script[] = { { STEP_EXIT, 0, 5 }, { 0 } };
	pthread_t thread;

	begin_coalesced(script);
	bus->feeder = 1;
	pthread_create(&thread, NULL, run_here, NULL);
	while (!fake.runs)
		usleep(100);
	shim_kick(vcpu);
	pthread_join(thread, NULL);
	CHECK_EQUAL(other_stop, SHIM_KICKED);
	CHECK_EQUAL(shim_run(vcpu, 2000000, UINT64_MAX), SHIM_TIMEOUT);
	bus->feeder = 0;
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, 5);
	CHECK_EQUAL(fake.runs, 1);
	end();
}

/* A handler of a coalesced write runs another vCPU on its own thread. */
static void no_thread_waits_for_itself(void)
{
	const struct step script[] = { { STEP_COALESCE, PYTHON, 1, 0, "a" }, { STEP_EXIT, 0, 5 }, { 0 } };

	begin_coalesced(script);
	bus->feeder = shim_kick_thread();
	CHECK_EQUAL(run_on(), SHIM_EXIT);
	CHECK(!strcmp(trace, "a"));
	CHECK_EQUAL(bus->feeder, shim_kick_thread());
	end();
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN); /* as Python does */
	the_page_must_be_in_the_mapping();
	owners_get_their_writes_in_order_and_first();
	reads_come_after_the_writes();
	wrap_around();
	writes_of_nobody_end_the_run_one_by_one();
	a_devices_stop_keeps_the_rest();
	a_handlers_exception_keeps_the_rest();
	drained_when_a_run_ends();
	a_kick_is_not_lost_over_them();
	failures_come_after_them();
	a_ring_that_cannot_be();
	a_full_pipe_loses_nothing();
	an_exit_waits_for_writes_in_other_hands();
	a_kick_ends_that_wait();
	no_thread_waits_for_itself();
	puts("coalesce: ok");
	return 0;
}
