/*
 * The I/O APIC over a scripted KVM: which routes and MSIs its registers, lines and EOIs become, in
 * which order, and a guest that does anything from several threads.
 */
#define _GNU_SOURCE
#include "fake_kvm.h"

#include <sys/eventfd.h>

#define VM_FD 3
#define MASKED 0x10000u
#define LEVEL 0x8000u
#define REMOTE_IRR 0x4000u
#define ROUNDS 20000

static struct shim_ioapic *ioapic;
static const struct step nothing[] = { { 0 } };
static const struct kvm_irq_routing no_others;

static int put(uint64_t offset, uint32_t value)
{
	struct shim_device *device = (struct shim_device *)ioapic;
	uint8_t data[4];

	memcpy(data, &value, 4);
	return device->access(device, vcpu, offset, data, 4, true);
}

static int set_register(unsigned index, uint32_t value)
{
	CHECK_EQUAL(put(0x00, index), SHIM_CONTINUE);
	return put(0x10, value);
}

static int set_low(unsigned pin, uint32_t low)
{
	return set_register(0x10 + 2 * pin, low);
}

static void set_entry(unsigned pin, uint32_t low)
{
	CHECK_EQUAL(set_low(pin, low), SHIM_CONTINUE);
}

static uint64_t entry_of(unsigned pin)
{
	struct kvm_ioapic_state state = { 0 };

	shim_ioapic_state(ioapic, &state);
	return state.redirtbl[pin].bits;
}

/* The data of the route of a GSI, -1: none. */
static int64_t route_of(unsigned gsi)
{
	for (unsigned i = 0; i < fake.route_count; i++)
		if (fake.routes[i].gsi == gsi)
			return fake.routes[i].u.msi.data;
	return -1;
}

static void eoi(uint8_t vector)
{
	CHECK_EQUAL(shim_ioapic_eoi(ioapic, vcpu, vector), SHIM_CONTINUE);
}

static void fresh(void)
{
	begin(nothing, ALL_SYNC);
	fake.msi_result = 1;
	ioapic = shim_ioapic_new();
	CHECK(ioapic);
	CHECK_EQUAL(shim_ioapic_connect(ioapic, VM_FD, &no_others), 0);
	CHECK_EQUAL(fake.route_count, 0);
}

static void done(void)
{
	shim_ioapic_disconnect(ioapic);
	shim_ioapic_put(ioapic);
	end();
}

/* ------------------------------------------------------------------ pins */

static void an_edge(void)
{
	fresh();
	shim_ioapic_set_line(ioapic, 4, true);
	set_entry(4, 0x31); /* while the line is up: no edge */
	CHECK_EQUAL(route_of(4), 0x31);
	CHECK_EQUAL(fake.msis, 0);
	shim_ioapic_set_line(ioapic, 4, false);
	shim_ioapic_set_line(ioapic, 4, true);
	shim_ioapic_set_line(ioapic, 4, true);
	CHECK_EQUAL(fake.msis, 1);
	CHECK_EQUAL(fake.msi.address_lo, 0xfee00000);
	CHECK_EQUAL(fake.msi.data, 0x31);
	CHECK_EQUAL(entry_of(4), 0x31);
	set_entry(4, 0x31 | MASKED);
	CHECK_EQUAL(route_of(4), -1);
	shim_ioapic_set_line(ioapic, 4, false);
	shim_ioapic_set_line(ioapic, 4, true);
	CHECK_EQUAL(fake.msis, 1);
	done();
}

static void a_level(void)
{
	fresh();
	set_entry(9, 0x41 | LEVEL);
	CHECK_EQUAL(route_of(9), 0xc041);
	shim_ioapic_set_line(ioapic, 9, true);
	CHECK_EQUAL(fake.msis, 1);
	CHECK_EQUAL(entry_of(9), 0x41 | LEVEL | REMOTE_IRR);
	shim_ioapic_set_line(ioapic, 9, false);
	shim_ioapic_set_line(ioapic, 9, true);
	CHECK_EQUAL(fake.msis, 1); /* one at a time */
	eoi(0x42); /* another's */
	CHECK_EQUAL(fake.msis, 1);
	eoi(0x41); /* still up */
	CHECK_EQUAL(fake.msis, 2);
	CHECK_EQUAL(entry_of(9), 0x41 | LEVEL | REMOTE_IRR);
	shim_ioapic_set_line(ioapic, 9, false);
	CHECK_EQUAL(put(0x40, 0x41), SHIM_CONTINUE); /* by the EOI register */
	CHECK_EQUAL(fake.msis, 2);
	CHECK_EQUAL(entry_of(9), 0x41 | LEVEL);
	CHECK_EQUAL(fake.tables, 2); /* KVM is told what is news, and no more */
	done();
}

static void masked_before_its_eoi(void)
{
	fresh();
	set_entry(9, 0x41 | LEVEL);
	shim_ioapic_set_line(ioapic, 9, true);
	set_entry(9, 0x41 | LEVEL | MASKED);
	/* or KVM would not tell of the EOI */
	CHECK_EQUAL(route_of(9), 0xc041);
	eoi(0x41);
	CHECK_EQUAL(route_of(9), -1);
	CHECK_EQUAL(entry_of(9), 0x41 | LEVEL | MASKED);
	CHECK_EQUAL(fake.msis, 1);
	set_entry(9, 0x41 | LEVEL); /* still up */
	CHECK_EQUAL(fake.msis, 2);
	/* how kernels clear it where there is no EOI register */
	set_entry(9, 0x41 | MASKED);
	CHECK_EQUAL(entry_of(9), 0x41 | MASKED);
	CHECK_EQUAL(route_of(9), -1);
	done();
}

static void an_interrupt_that_nobody_takes(void)
{
	fresh();
	fake.msi_result = 0;
	set_entry(9, 0x41 | LEVEL);
	shim_ioapic_set_line(ioapic, 9, true);
	CHECK_EQUAL(entry_of(9), 0x41 | LEVEL);
	fake.msi_result = 1;
	set_entry(9, 0x41 | LEVEL);
	CHECK_EQUAL(entry_of(9), 0x41 | LEVEL | REMOTE_IRR);
	done();
}

static void modes_and_destinations(void)
{
	static const struct { uint32_t low; int64_t data; } of[] = {
		{ 0x0031, 0x0031 }, { 0x0131 | LEVEL, 0xc131 }, { 0x0200 | LEVEL, 0x0200 },
		{ 0x0331, -1 }, { 0x0400 | LEVEL, 0x0400 }, { 0x0500 | LEVEL, 0x0500 },
		{ 0x0631, -1 }, { 0x0731, -1 },
	};

	fresh();
	for (unsigned i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
		set_entry(7, of[i].low);
		CHECK_EQUAL(route_of(7), of[i].data);
	}
	set_entry(7, 0x31 | 0x800);
	CHECK_EQUAL(set_register(0x1f, 0xa5ffffff), SHIM_CONTINUE);
	CHECK_EQUAL(fake.routes[0].u.msi.address_lo, 0xfeea5004);
	CHECK_EQUAL(fake.routes[0].u.msi.address_hi, 0);
	CHECK_EQUAL(entry_of(7) >> 32, 0xa5000000);
	done();
}

static void ask_again(void)
{
	int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	uint64_t count;

	fresh();
	CHECK_EQUAL(shim_ioapic_resample(ioapic, SHIM_IOAPIC_PINS, event), -EINVAL);
	CHECK_EQUAL(shim_ioapic_resample(ioapic, 9, event), 0);
	CHECK_EQUAL(shim_ioapic_resample(ioapic, 9, event), -EBUSY);
	CHECK(read(event, &count, 8) < 0);
	set_entry(9, 0x41 | LEVEL); /* what came while it was masked is lost */
	CHECK_EQUAL(read(event, &count, 8), 8);
	set_entry(9, 0x42 | LEVEL);
	CHECK(read(event, &count, 8) < 0);
	eoi(0x41);
	CHECK(read(event, &count, 8) < 0);
	eoi(0x42);
	CHECK_EQUAL(read(event, &count, 8), 8);
	set_entry(9, 0x42);
	eoi(0x42);
	CHECK(read(event, &count, 8) < 0);
	CHECK_EQUAL(shim_ioapic_resample(ioapic, 9, -1), 0);
	set_entry(9, 0x42 | LEVEL);
	CHECK(read(event, &count, 8) < 0);
	CHECK_EQUAL(fake.msis, 0);
	close(event);
	done();
}

/* ------------------------------------------------------------------ KVM's table */

static void routes_of_others(void)
{
	struct kvm_irq_routing *others = calloc(1, sizeof(*others) + 2 * sizeof(others->entries[0]));

	fresh();
	CHECK(others);
	others->nr = 2;
	for (unsigned i = 0; i < 2; i++) {
		others->entries[i].gsi = 30 + i;
		others->entries[i].type = KVM_IRQ_ROUTING_MSI;
		others->entries[i].u.msi.data = 0x70 + i;
	}
	set_entry(4, 0x31);
	CHECK_EQUAL(shim_ioapic_set_others(ioapic, others), 0);
	CHECK_EQUAL(fake.route_count, 3);
	set_entry(5, 0x32);
	CHECK_EQUAL(route_of(30), 0x70);
	CHECK_EQUAL(route_of(31), 0x71);
	CHECK_EQUAL(route_of(4), 0x31);
	CHECK_EQUAL(route_of(5), 0x32);
	fake.routing_fails = ENOMEM;
	others->nr = 1;
	CHECK_EQUAL(shim_ioapic_set_others(ioapic, others), -ENOMEM);
	fake.routing_fails = 0;
	set_entry(5, MASKED); /* with the others as they were */
	CHECK_EQUAL(fake.route_count, 3);
	free(others);
	done();
}

static void a_table_that_kvm_refuses(void)
{
	fresh();
	fake.routing_fails = ENOMEM;
	CHECK_EQUAL(set_low(9, 0x41 | LEVEL), SHIM_ROUTING_ERROR);
	CHECK_EQUAL(vcpu->report.value, ENOMEM);
	shim_ioapic_set_line(ioapic, 9, true);
	CHECK_EQUAL(fake.msis, 0); /* without a route its EOI would be lost */
	fake.routing_fails = 0;
	set_entry(9, 0x41 | LEVEL);
	CHECK_EQUAL(fake.msis, 1);
	set_entry(9, 0x41 | LEVEL | MASKED);
	fake.routing_fails = EIO;
	CHECK_EQUAL(shim_ioapic_eoi(ioapic, vcpu, 0x41), SHIM_ROUTING_ERROR);
	CHECK_EQUAL(vcpu->report.value, EIO);
	done();
	begin(nothing, ALL_SYNC);
	fake.routing_fails = ENOMEM;
	ioapic = shim_ioapic_new();
	CHECK_EQUAL(shim_ioapic_connect(ioapic, VM_FD, &no_others), -ENOMEM);
	done();
}

/* ------------------------------------------------------------------ in the run loop */

static void eois_of_lapics(void)
{
	static uint8_t of_0x41[256] = { 0x41 };
	static const struct step script[] = {
		{ STEP_ASK, .size = KVM_EXIT_IOAPIC_EOI, .data = of_0x41 },
		{ STEP_ASK, .size = KVM_EXIT_IOAPIC_EOI, .data = of_0x41 },
		{ STEP_EXIT, .size = KVM_EXIT_HLT },
		{ STEP_ASK, .size = KVM_EXIT_IOAPIC_EOI, .data = of_0x41 },
		{ 0 },
	};

	fresh();
	fake.script = script;
	set_entry(9, 0x41 | LEVEL);
	shim_ioapic_set_line(ioapic, 9, true);
	shim_bus_set_ioapic(bus, ioapic);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, KVM_EXIT_HLT);
	CHECK_EQUAL(fake.msis, 3);
	CHECK_EQUAL(vcpu->counters->exits[KVM_EXIT_IOAPIC_EOI], 2);
	shim_bus_set_ioapic(bus, NULL);
	CHECK_EQUAL(run(), SHIM_EXIT);
	CHECK_EQUAL(vcpu->run->exit_reason, KVM_EXIT_IOAPIC_EOI);
	CHECK_EQUAL(fake.msis, 3);
	done();
}

/* ------------------------------------------------------------------ lines of devices */

static void lines_outlive_their_ioapic(void)
{
	struct shim_pm *pm = shim_pm_new(), *other = shim_pm_new();
	struct shim_rtc *rtc = shim_rtc_new();
	struct shim_device *device = (struct shim_device *)pm;
	uint8_t enable[2] = { 0, 1 };

	fresh();
	set_entry(9, 0x41 | LEVEL);
	shim_pm_connect_ioapic(pm, ioapic, 9);
	shim_pm_connect_ioapic(other, ioapic, 10);
	CHECK_EQUAL(shim_rtc_connect_ioapic(rtc, ioapic, 8), 0);
	CHECK_EQUAL(device->access(device, vcpu, 2, enable, 2, true), SHIM_CONTINUE);
	shim_pm_press_power_button(pm);
	CHECK_EQUAL(fake.msis, 1);
	shim_pm_connect_line(pm, -1, 0); /* lowers it */
	eoi(0x41);
	CHECK_EQUAL(fake.msis, 1);
	shim_pm_connect_ioapic(pm, ioapic, 9); /* as it was */
	CHECK_EQUAL(fake.msis, 2);
	done();
	shim_pm_connect_line(pm, -1, 0);
	shim_pm_free(pm);
	shim_pm_free(other);
	shim_rtc_free(rtc);
}

/* ------------------------------------------------------------------ anything, from anywhere */

static uint32_t next(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static void one_access(struct shim_vcpu *by, uint32_t *state)
{
	static const uint64_t offsets[] = { 0x00, 0x10, 0x10, 0x40, 0x13, 0xff };
	struct shim_device *device = (struct shim_device *)ioapic;
	unsigned size = 1 + next(state) % 8;
	bool is_write = next(state) % 4;
	/* Exactly as long as the access: one byte more is the sanitizer's. */
	uint8_t *data = malloc(size);

	CHECK(data);
	for (unsigned i = 0; i < size; i++)
		data[i] = next(state) >> 8;
	if (next(state) % 2)
		data[0] &= 0x3f;
	CHECK_EQUAL(device->access(device, by, offsets[next(state) % 6], data, size, is_write),
		    SHIM_CONTINUE);
	free(data);
}

static void *anything(void *argument)
{
	struct shim_vcpu by = { 0 };
	uint32_t state = (uintptr_t)argument;

	for (unsigned i = 0; i < ROUNDS; i++) {
		one_access(&by, &state);
		shim_ioapic_set_line(ioapic, next(&state) % 32, next(&state) % 2);
		CHECK_EQUAL(shim_ioapic_eoi(ioapic, &by, next(&state)), SHIM_CONTINUE);
	}
	return NULL;
}

static void a_storm(void)
{
	uint32_t words[2 * SHIM_IOAPIC_PINS];
	unsigned routes = 0;
	pthread_t threads[3];

	fresh();
	for (uintptr_t i = 0; i < 3; i++)
		CHECK_EQUAL(pthread_create(&threads[i], NULL, anything, (void *)(i + 1)), 0);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	shim_ioapic_routes(ioapic, words);
	for (unsigned pin = 0; pin < SHIM_IOAPIC_PINS; pin++) {
		uint64_t entry = entry_of(pin);
		unsigned mode = entry >> 8 & 7;
		bool has_route = (!(entry & MASKED) || (entry & REMOTE_IRR)) && mode != 3 &&
				 mode < 6;

		CHECK_EQUAL(entry & ~0xff0000000001efffull, 0); /* reserved bits */
		if (entry & REMOTE_IRR)
			CHECK((entry & LEVEL) && mode < 2);
		CHECK_EQUAL(words[2 * pin] != 0, has_route);
		CHECK_EQUAL(route_of(pin), has_route ? (int64_t)words[2 * pin + 1] : -1);
		routes += has_route;
	}
	CHECK_EQUAL(fake.route_count, routes); /* the last table that KVM got is the right one */
	CHECK(fake.msis && fake.tables);
	done();
}

int main(void)
{
	an_edge();
	a_level();
	masked_before_its_eoi();
	an_interrupt_that_nobody_takes();
	modes_and_destinations();
	ask_again();
	routes_of_others();
	a_table_that_kvm_refuses();
	eois_of_lapics();
	lines_outlive_their_ioapic();
	a_storm();
	puts("ioapic: ok");
	return 0;
}
