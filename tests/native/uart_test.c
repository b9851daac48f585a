/*
 * The UART, register by register (PC16550D data sheet), and its interrupt, without a guest.
 */
#define _GNU_SOURCE /* memfd_create */
#include <poll.h>
#include <sys/eventfd.h>

#include "fake_kvm.h"

enum { RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR };

static struct shim_sink *sink;
static struct shim_uart *uart;

static uint8_t get(unsigned index)
{
	struct shim_device *device = (struct shim_device *)uart;
	uint8_t data = 0xff;

	CHECK_EQUAL(device->access(device, vcpu, index, &data, 1, false), SHIM_CONTINUE);
	return data;
}

static void put(unsigned index, uint8_t value)
{
	struct shim_device *device = (struct shim_device *)uart;

	CHECK_EQUAL(device->access(device, vcpu, index, &value, 1, true), SHIM_CONTINUE);
}

static void fresh(void)
{
	static const struct step nothing[] = { { 0 } };

	begin(nothing, ALL_SYNC);
	sink = shim_sink_new(-1);
	uart = shim_uart_new(sink);
}

static void done(void)
{
	shim_uart_free(uart);
	shim_sink_free(sink);
	end();
}

static void host_sends(const char *text)
{
	unsigned length = strlen(text);

	CHECK_EQUAL(shim_uart_receive(uart, (const uint8_t *)text, length, -1), length);
}

static void expect_output(const char *text)
{
	uint8_t out[64];
	unsigned length = shim_sink_take(sink, out, sizeof(out));

	CHECK_EQUAL(length, strlen(text));
	CHECK(!memcmp(out, text, length));
}

/* As a driver probes it: scratch register, divisor latch, interrupt mask, FIFO bits. */
static void identification(void)
{
	fresh();
	put(SCR, 0xa5);
	CHECK_EQUAL(get(SCR), 0xa5);
	put(LCR, 0x83);
	put(RBR_THR, 0x34);
	put(IER, 0x12);
	CHECK_EQUAL(get(RBR_THR), 0x34);
	CHECK_EQUAL(get(IER), 0x12);
	put(LCR, 0x03);
	CHECK_EQUAL(get(LCR), 0x03);
	CHECK_EQUAL(get(IER), 0); /* the latch is behind DLAB */
	put(IER, 0xff);
	CHECK_EQUAL(get(IER), 0x0f);
	put(IER, 0);
	CHECK_EQUAL(get(IIR_FCR), 0x01);
	put(IIR_FCR, 0x01);
	CHECK_EQUAL(get(IIR_FCR), 0xc1); /* FIFOs: a 16550A */
	put(IIR_FCR, 0x00);
	CHECK_EQUAL(get(IIR_FCR), 0x01);
	CHECK_EQUAL(get(LSR), 0x60);
	CHECK_EQUAL(get(MSR), 0xb0);
	expect_output(""); /* the divisor was no output */
	done();
}

static void read_only_registers(void)
{
	fresh();
	put(LSR, 0);
	put(MSR, 0);
	CHECK_EQUAL(get(LSR), 0x60);
	CHECK_EQUAL(get(MSR), 0xb0);
	put(MCR, 0xff);
	CHECK_EQUAL(get(MCR), 0x1f);
	done();
}

static void transmit_and_receive(void)
{
	fresh();
	for (const char *c = "hello"; *c; c++) {
		CHECK(get(LSR) & 0x20);
		put(RBR_THR, *c);
	}
	expect_output("hello");
	CHECK_EQUAL(get(LSR) & 1, 0);
	CHECK_EQUAL(get(RBR_THR), 0); /* nothing there */
	host_sends("ab");
	CHECK_EQUAL(shim_uart_backlog(uart), 2);
	CHECK_EQUAL(get(LSR), 0x61);
	CHECK_EQUAL(get(RBR_THR), 'a');
	CHECK_EQUAL(get(LSR), 0x61);
	CHECK_EQUAL(get(RBR_THR), 'b');
	CHECK_EQUAL(get(LSR), 0x60);
	done();
}

/* The self-test of drivers: what goes out comes in, modem outputs come back as inputs. */
static void loopback(void)
{
	fresh();
	put(MCR, 0x10);
	CHECK_EQUAL(get(MSR) & 0xf0, 0x00);
	put(MCR, 0x1a); /* RTS and OUT2: CTS and DCD */
	CHECK_EQUAL(get(MSR) & 0xf0, 0x90);
	put(MCR, 0x15); /* DTR and OUT1: DSR and RI */
	CHECK_EQUAL(get(MSR) & 0xf0, 0x60);
	put(MCR, 0x1f);
	get(MSR);
	CHECK_EQUAL(get(MSR), 0xf0); /* deltas are gone once read */
	put(RBR_THR, 0xae);
	CHECK_EQUAL(get(LSR) & 1, 1);
	CHECK_EQUAL(get(RBR_THR), 0xae);
	expect_output(""); /* nobody outside has seen it */
	put(MCR, 0);
	put(RBR_THR, 'x');
	expect_output("x");
	done();
}

static void loopback_overrun(void)
{
	fresh();
	put(IIR_FCR, 0x01);
	put(MCR, 0x10);
	for (unsigned i = 0; i < 16; i++)
		put(RBR_THR, i);
	CHECK_EQUAL(get(LSR) & 2, 0);
	put(RBR_THR, 16);
	CHECK_EQUAL(get(LSR) & 2, 2);
	CHECK_EQUAL(get(LSR) & 2, 0); /* reading clears it */
	for (unsigned i = 0; i < 16; i++)
		CHECK_EQUAL(get(RBR_THR), i);
	done();
}

static void modem_deltas(void)
{
	fresh();
	CHECK_EQUAL(get(MSR) & 0x0f, 0);
	put(MCR, 0x10); /* DCD, DSR and CTS fall */
	CHECK_EQUAL(get(MSR) & 0x0f, 0x0b);
	CHECK_EQUAL(get(MSR) & 0x0f, 0);
	put(MCR, 0x14); /* RI rises: not counted */
	CHECK_EQUAL(get(MSR) & 0x0f, 0);
	put(MCR, 0x10); /* its trailing edge is */
	CHECK_EQUAL(get(MSR) & 0x0f, 0x04);
	done();
}

static void fifo_control(void)
{
	fresh();
	host_sends("old");
	put(IIR_FCR, 0x01); /* enabling clears */
	CHECK_EQUAL(shim_uart_backlog(uart), 0);
	host_sends("more");
	put(IIR_FCR, 0x01); /* no change, no clearing */
	CHECK_EQUAL(shim_uart_backlog(uart), 4);
	put(IIR_FCR, 0x03);
	CHECK_EQUAL(shim_uart_backlog(uart), 0);
	host_sends("x");
	put(IIR_FCR, 0x05); /* the transmitter's reset leaves the receiver alone */
	CHECK_EQUAL(shim_uart_backlog(uart), 1);
	done();
}

/* Line status before data before THR before modem status, each with its own acknowledgement. */
static void interrupt_priorities(void)
{
	fresh();
	put(IIR_FCR, 0x01);
	put(MCR, 0x10); /* loop: deltas */
	for (unsigned i = 0; i < 17; i++)
		put(RBR_THR, i); /* data, overrun, THR empty */
	put(IER, 0x0f);
	CHECK_EQUAL(get(IIR_FCR), 0xc6);
	CHECK_EQUAL(get(IIR_FCR), 0xc6); /* until LSR is read */
	get(LSR);
	CHECK_EQUAL(get(IIR_FCR), 0xc4);
	for (unsigned i = 0; i < 16; i++)
		get(RBR_THR);
	CHECK_EQUAL(get(IIR_FCR), 0xc2);
	CHECK_EQUAL(get(IIR_FCR), 0xc0); /* reading IIR acknowledged THR empty */
	get(MSR);
	CHECK_EQUAL(get(IIR_FCR), 0xc1);
	done();
}

static void thr_interrupt(void)
{
	fresh();
	shim_uart_connect_line(uart, 3, 4);
	CHECK_EQUAL(fake.irq_level, 0);
	put(IER, 0x02); /* THR is empty: enabling raises it */
	CHECK_EQUAL(fake.irq_level, 1);
	CHECK_EQUAL(get(IIR_FCR), 0x02);
	CHECK_EQUAL(fake.irq_level, 0);
	put(RBR_THR, 'x'); /* gone at once: empty again */
	CHECK_EQUAL(fake.irq_level, 1);
	put(IER, 0);
	CHECK_EQUAL(fake.irq_level, 0);
	put(IER, 0x02);
	put(IER, 0x02); /* no second edge for the same mask */
	CHECK_EQUAL(get(IIR_FCR), 0x02);
	put(IER, 0x02);
	CHECK_EQUAL(get(IIR_FCR), 0x01);
	done();
}

static void receive_interrupt_and_trigger_level(void)
{
	fresh();
	shim_uart_connect_line(uart, 3, 4);
	put(IIR_FCR, 0x41); /* trigger at 4 */
	put(IER, 0x01);
	CHECK_EQUAL(fake.irq_level, 0);
	host_sends("a");
	CHECK_EQUAL(fake.irq_level, 1);
	CHECK_EQUAL(get(IIR_FCR), 0xcc); /* below the level: time-out */
	host_sends("bcd");
	CHECK_EQUAL(get(IIR_FCR), 0xc4);
	CHECK_EQUAL(fake.irq_line[1], 1); /* one rise for all of them */
	for (unsigned i = 0; i < 4; i++) {
		CHECK_EQUAL(fake.irq_level, 1);
		get(RBR_THR);
	}
	CHECK_EQUAL(fake.irq_level, 0);
	put(IIR_FCR, 0x00);
	host_sends("e");
	CHECK_EQUAL(get(IIR_FCR), 0x04); /* without FIFO there is one level */
	done();
}

static void line_is_raised_when_it_is_connected(void)
{
	fresh();
	host_sends("a");
	put(IER, 0x01);
	shim_uart_connect_line(uart, 3, 4);
	CHECK_EQUAL(fake.irq_level, 1);
	done();
}

static void eventfd_interrupt(void)
{
	uint64_t count;
	int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	fresh();
	shim_uart_connect_eventfd(uart, event);
	put(IER, 0x01);
	CHECK(read(event, &count, 8) < 0);
	host_sends("a");
	CHECK_EQUAL(read(event, &count, 8), 8);
	CHECK_EQUAL(count, 1);
	host_sends("b"); /* no edge while it is high */
	CHECK(read(event, &count, 8) < 0);
	get(RBR_THR);
	get(RBR_THR);
	host_sends("c");
	CHECK_EQUAL(read(event, &count, 8), 8);
	CHECK_EQUAL(fake.irq_line[0] + fake.irq_line[1], 0);
	shim_uart_connect_eventfd(uart, -1);
	get(RBR_THR);
	host_sends("d");
	CHECK(read(event, &count, 8) < 0);
	done();
	close(event);
}

static void room_in_the_queue(void)
{
	uint64_t count;
	static uint8_t bytes[5000];
	int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	unsigned taken;

	fresh();
	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = i;
	taken = shim_uart_receive(uart, bytes, sizeof(bytes), event);
	CHECK(taken >= 4096 && taken < sizeof(bytes));
	CHECK_EQUAL(shim_uart_receive(uart, bytes, 1, event), 0);
	for (unsigned i = 0; i < taken / 2 - 1; i++)
		CHECK_EQUAL(get(RBR_THR), i & 0xff);
	CHECK(read(event, &count, 8) < 0);
	for (unsigned i = taken / 2 - 1; i < taken; i++)
		CHECK_EQUAL(get(RBR_THR), i & 0xff);
	CHECK_EQUAL(read(event, &count, 8), 8);
	CHECK_EQUAL(count, 1); /* said once */
	/* A FIFO reset makes room, too, sixteen bytes at a time. */
	taken = shim_uart_receive(uart, bytes, sizeof(bytes), event);
	put(IIR_FCR, 0x07);
	CHECK_EQUAL(shim_uart_backlog(uart), taken - 16);
	for (unsigned i = 0; i < taken / 32; i++)
		put(IIR_FCR, 0x07);
	CHECK_EQUAL(read(event, &count, 8), 8);
	done();
	close(event);
}

/* A wide access is one byte per register. */
static void wide_accesses(void)
{
	struct shim_device *device;
	uint8_t data[8] = { 'w', 0, 0, 0x03, 0, 0, 0, 0x77 };

	fresh();
	device = (struct shim_device *)uart;
	CHECK_EQUAL(device->access(device, vcpu, 0, data, 8, true), SHIM_CONTINUE);
	expect_output("w");
	CHECK_EQUAL(get(SCR), 0x77);
	memset(data, 0, 8);
	CHECK_EQUAL(device->access(device, vcpu, 4, data, 4, false), SHIM_CONTINUE);
	CHECK(!memcmp(data, "\x00\x60\xb0\x77", 4));
	CHECK_EQUAL(device->access(device, vcpu, 7, data, 4, false), SHIM_CONTINUE); /* past the end */
	done();
}

/* Any access at all: no crash, no byte out of bounds (ASan), registers keep their reserved bits. */
static void random_accesses(void)
{
	struct shim_device *device;
	unsigned seed = 12345;

	fresh();
	device = (struct shim_device *)uart;
	shim_uart_connect_line(uart, 3, 4);
	for (unsigned i = 0; i < 200000; i++) {
		uint8_t data[8];
		unsigned size;

		for (unsigned k = 0; k < 8; k++)
			data[k] = rand_r(&seed) >> 8;
		size = 1 + (rand_r(&seed) >> 8) % 8;
		if ((rand_r(&seed) >> 8) % 7 == 0)
			shim_uart_receive(uart, data, size, -1);
		else if (device->access(device, vcpu, (rand_r(&seed) >> 8) % 8, data, size,
					(rand_r(&seed) >> 8) & 1) == SHIM_DRAIN) {
			uint8_t out[SHIM_SINK_SIZE];

			shim_sink_take(sink, out, sizeof(out));
		}
		CHECK((get(LSR) & 0x9c) == 0);
		CHECK((get(IER) & 0xf0) == 0 || (get(LCR) & 0x80));
		CHECK((get(IIR_FCR) & 0x30) == 0);
	}
	done();
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	identification();
	read_only_registers();
	transmit_and_receive();
	loopback();
	loopback_overrun();
	modem_deltas();
	fifo_control();
	interrupt_priorities();
	thr_interrupt();
	receive_interrupt_and_trigger_level();
	line_is_raised_when_it_is_connected();
	eventfd_interrupt();
	room_in_the_queue();
	wide_accesses();
	random_accesses();
	puts("uart: ok");
	return 0;
}
