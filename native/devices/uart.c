/*
 * 16550A UART (National Semiconductor PC16550D data sheet).
 *
 * The transmitter is instant: THR is always empty, and its bytes go to a sink. What the host sends
 * waits in a queue, on the wire as it were, until the receiver has room: nothing is lost to overrun,
 * and to a reset of the FIFO no more than it holds. The host is told how much was taken and can
 * be woken when there is room. OUT2 does not gate the interrupt, as it does
 * not in other virtual machines either: small kernels forget it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

enum { RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR };

#define IER_RECEIVE 0x01
#define IER_TRANSMIT 0x02
#define IER_STATUS 0x04
#define IER_MODEM 0x08
#define IIR_NONE 0x01
#define IIR_MODEM 0x00
#define IIR_TRANSMIT 0x02
#define IIR_RECEIVE 0x04
#define IIR_STATUS 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFOS 0xc0
#define FCR_ENABLE 0x01
#define FCR_CLEAR_RECEIVE 0x02
#define LCR_DLAB 0x80
#define MCR_LOOP 0x10
#define LSR_DATA 0x01
#define LSR_OVERRUN 0x02
#define LSR_EMPTY 0x60 /* THR and the shift register */
#define MSR_PRESENT 0xb0 /* DCD, DSR, CTS: somebody is at the other end */

#define FIFO_DEPTH 16
#define QUEUE_SIZE 4096

struct shim_uart {
	struct shim_device device;
	struct shim_sink *sink;
	pthread_mutex_t lock;
	struct shim_at_fork at_fork;
	uint8_t ier, fcr, lcr, mcr, scr, dll, dlm;
	uint8_t overrun;
	bool transmit_interrupt; /* THR became empty since IIR last said so */
	uint8_t msr_delta, msr_lines;

	/* The receiver: its FIFO, or RBR alone. */
	uint8_t fifo[FIFO_DEPTH];
	unsigned received;

	uint8_t queue[QUEUE_SIZE];
	unsigned head, length;
	int space_eventfd; /* to be signalled when half of a full queue is free, -1: nobody waits */

	struct shim_line line;
};

/* ------------------------------------------------------------------ interrupts */

static unsigned trigger_level(const struct shim_uart *uart)
{
	static const uint8_t levels[] = { 1, 4, 8, 14 };

	return uart->fcr & FCR_ENABLE ? levels[uart->fcr >> 6] : 1;
}

/* In the order of priority of the data sheet. What lies in the FIFO below its trigger level
 * counts as timed out at once: time does not pass between our bytes. */
static uint8_t interrupt_source(const struct shim_uart *uart)
{
	if ((uart->ier & IER_STATUS) && uart->overrun)
		return IIR_STATUS;
	if ((uart->ier & IER_RECEIVE) && uart->received)
		return uart->received >= trigger_level(uart) ? IIR_RECEIVE : IIR_TIMEOUT;
	if ((uart->ier & IER_TRANSMIT) && uart->transmit_interrupt)
		return IIR_TRANSMIT;
	if ((uart->ier & IER_MODEM) && uart->msr_delta)
		return IIR_MODEM;
	return IIR_NONE;
}

/* ------------------------------------------------------------------ receiver */

static unsigned depth(const struct shim_uart *uart)
{
	return uart->fcr & FCR_ENABLE ? FIFO_DEPTH : 1;
}

static void tell_of_space(struct shim_uart *uart)
{
	uint64_t one = 1;

	if (uart->space_eventfd >= 0 && uart->length <= QUEUE_SIZE / 2 &&
	    write(uart->space_eventfd, &one, sizeof(one)) == sizeof(one))
		uart->space_eventfd = -1;
}

/* What waits arrives when the guest looks for it. In loopback the receiver is off the wire. */
static void arrive(struct shim_uart *uart)
{
	if (uart->mcr & MCR_LOOP)
		return;
	while (uart->length && uart->received < depth(uart)) {
		uart->fifo[uart->received++] = uart->queue[uart->head];
		uart->head = (uart->head + 1) % QUEUE_SIZE;
		uart->length--;
	}
	tell_of_space(uart);
}

/* What the receiver holds is lost, and what had come by now on a line that does not wait: no more
 * than a FIFO full. */
static void reset_receiver(struct shim_uart *uart)
{
	unsigned lost = FIFO_DEPTH - uart->received;

	uart->received = 0;
	if (uart->mcr & MCR_LOOP)
		return;
	if (lost > uart->length)
		lost = uart->length;
	uart->head = (uart->head + lost) % QUEUE_SIZE;
	uart->length -= lost;
	tell_of_space(uart);
}

static uint8_t receive_read(struct shim_uart *uart)
{
	uint8_t byte = uart->fifo[0];

	if (!uart->received)
		return 0;
	memmove(uart->fifo, uart->fifo + 1, --uart->received);
	return byte;
}

static void update_interrupt(struct shim_uart *uart)
{
	if (uart->ier & IER_RECEIVE)
		arrive(uart);
	shim_line_set(&uart->line, interrupt_source(uart) != IIR_NONE);
}

/* The chip at the other end of the line has been set: it is told where the line is. */
void shim_uart_assert(struct shim_uart *uart)
{
	pthread_mutex_lock(&uart->lock);
	shim_line_assert(&uart->line);
	pthread_mutex_unlock(&uart->lock);
}

/* How many bytes were taken. Fewer than `length`: the queue is full, and space_eventfd (unless
 * -1) is signalled once half of it is free again. Any call replaces the eventfd of the one before:
 * one of length 0 forgets it, as it must be before it is closed. Any thread. */
unsigned shim_uart_receive(struct shim_uart *uart, const uint8_t *data, unsigned length,
			   int space_eventfd)
{
	unsigned taken = 0;

	pthread_mutex_lock(&uart->lock);
	while (taken < length && uart->length < QUEUE_SIZE)
		uart->queue[(uart->head + uart->length++) % QUEUE_SIZE] = data[taken++];
	uart->space_eventfd = taken < length ? space_eventfd : -1;
	update_interrupt(uart);
	pthread_mutex_unlock(&uart->lock);
	return taken;
}

unsigned shim_uart_backlog(struct shim_uart *uart)
{
	unsigned length;

	pthread_mutex_lock(&uart->lock);
	length = uart->received + uart->length;
	pthread_mutex_unlock(&uart->lock);
	return length;
}

/* ------------------------------------------------------------------ registers */

/* In loopback the modem's inputs are the UART's own outputs. */
static uint8_t modem_lines(const struct shim_uart *uart)
{
	uint8_t mcr = uart->mcr;

	if (!(mcr & MCR_LOOP))
		return MSR_PRESENT;
	return (mcr & 0x01) << 5 | (mcr & 0x02) << 3 | (mcr & 0x04) << 4 | (mcr & 0x08) << 4;
}

static void update_modem(struct shim_uart *uart)
{
	uint8_t lines = modem_lines(uart), changed = lines ^ uart->msr_lines;

	/* Ring indicator counts on its trailing edge only. */
	if (lines & 0x40)
		changed &= ~0x40;
	uart->msr_delta |= changed >> 4;
	uart->msr_lines = lines;
}

static uint8_t read_register(struct shim_uart *uart, unsigned index)
{
	uint8_t value;

	if (index == LSR || index == IIR_FCR || (index == RBR_THR && !(uart->lcr & LCR_DLAB)))
		arrive(uart);
	switch (index) {
	case RBR_THR:
		return uart->lcr & LCR_DLAB ? uart->dll : receive_read(uart);
	case IER:
		return uart->lcr & LCR_DLAB ? uart->dlm : uart->ier;
	case IIR_FCR:
		value = interrupt_source(uart);
		if (value == IIR_TRANSMIT)
			uart->transmit_interrupt = false;
		return value | (uart->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
	case LCR:
		return uart->lcr;
	case MCR:
		return uart->mcr;
	case LSR:
		value = LSR_EMPTY | (uart->received ? LSR_DATA : 0) | uart->overrun;
		uart->overrun = 0;
		return value;
	case MSR:
		value = uart->msr_lines | uart->msr_delta;
		uart->msr_delta = 0;
		return value;
	default:
		return uart->scr;
	}
}

static void loop_back(struct shim_uart *uart, uint8_t byte)
{
	/* A full FIFO keeps what it has; RBR alone is overwritten. */
	if (uart->received == depth(uart))
		uart->overrun = LSR_OVERRUN;
	if (uart->received < depth(uart))
		uart->fifo[uart->received++] = byte;
	else if (!(uart->fcr & FCR_ENABLE))
		uart->fifo[0] = byte;
}

/* Gives the byte that goes to the sink, -1 for none. */
static int transmit(struct shim_uart *uart, uint8_t byte)
{
	bool looped = uart->mcr & MCR_LOOP;

	if (looped)
		loop_back(uart, byte);
	uart->transmit_interrupt = true;
	return looped ? -1 : byte;
}

static void set_ier(struct shim_uart *uart, uint8_t value)
{
	/* Enabling the interrupt while THR is empty raises it: drivers start output that way. */
	if (value & ~uart->ier & IER_TRANSMIT)
		uart->transmit_interrupt = true;
	uart->ier = value & 0x0f;
}

static void set_fcr(struct shim_uart *uart, uint8_t value)
{
	if ((value & FCR_CLEAR_RECEIVE) || ((value ^ uart->fcr) & FCR_ENABLE))
		reset_receiver(uart);
	uart->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
}

static int write_register(struct shim_uart *uart, unsigned index, uint8_t value)
{
	switch (index) {
	case RBR_THR:
		if (!(uart->lcr & LCR_DLAB))
			return transmit(uart, value);
		uart->dll = value;
		break;
	case IER:
		if (uart->lcr & LCR_DLAB)
			uart->dlm = value;
		else
			set_ier(uart, value);
		break;
	case IIR_FCR:
		set_fcr(uart, value);
		break;
	case LCR:
		uart->lcr = value;
		break;
	case MCR:
		uart->mcr = value & 0x1f;
		update_modem(uart);
		break;
	case SCR:
		uart->scr = value;
		break;
	default: /* LSR and MSR are read-only outside the factory */
		break;
	}
	return -1;
}

/* A wide access is one byte access per register, as the bus would split it; past the last one there
 * is nothing. */
static int uart_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
		       uint8_t *data, unsigned size, bool is_write)
{
	struct shim_uart *uart = (struct shim_uart *)device;
	int sent = -1; /* one at most: no access is wider than the eight registers */

	pthread_mutex_lock(&uart->lock);
	for (unsigned i = 0; i < size; i++) {
		uint64_t index = offset + i;

		if (index > SCR) {
			if (!is_write)
				data[i] = 0xff;
		} else if (!is_write) {
			data[i] = read_register(uart, index);
		} else {
			int result = write_register(uart, index, data[i]);

			if (result >= 0)
				sent = result;
		}
	}
	update_interrupt(uart);
	pthread_mutex_unlock(&uart->lock);
	/* Outside the lock: the sink can hold this thread for as long as its reader is slow, and
	 * that reader may be about to call shim_uart_receive(). */
	return sent < 0 ? SHIM_CONTINUE : shim_sink_put(uart->sink, vcpu, sent);
}

static int uart_flush(struct shim_device *device)
{
	return shim_sink_flush(((struct shim_uart *)device)->sink);
}

/* ------------------------------------------------------------------ life */

static void in_child(struct shim_at_fork *at_fork)
{
	struct shim_uart *uart = SHIM_OF_FORK(struct shim_uart, at_fork);

	shim_line_at_fork(&uart->line, &uart->lock);
	uart->space_eventfd = -1;
}

struct shim_uart *shim_uart_new(struct shim_sink *sink)
{
	struct shim_uart *uart = calloc(1, sizeof(*uart));

	if (!uart)
		return NULL;
	uart->device.access = uart_access;
	uart->device.flush = uart_flush;
	uart->sink = sink;
	uart->dll = 12; /* 9600 baud, as firmware leaves it */
	uart->lcr = 0x03;
	uart->msr_lines = MSR_PRESENT;
	uart->space_eventfd = -1;
	shim_line_init(&uart->line);
	pthread_mutex_init(&uart->lock, NULL);
	shim_at_fork(&uart->at_fork, in_child);
	return uart;
}

void shim_uart_free(struct shim_uart *uart)
{
	if (!uart)
		return;
	shim_not_at_fork(&uart->at_fork);
	shim_line_drop(&uart->line);
	pthread_mutex_destroy(&uart->lock);
	free(uart);
}

static int connect_to(struct shim_uart *uart, const struct shim_line *to)
{
	int error;

	pthread_mutex_lock(&uart->lock);
	error = shim_line_connect(&uart->line, to);
	update_interrupt(uart);
	pthread_mutex_unlock(&uart->lock);
	return error;
}

/* The interrupt as a line of the in-kernel irqchip; vm_fd -1 disconnects. */
void shim_uart_connect_line(struct shim_uart *uart, int vm_fd, uint32_t gsi)
{
	connect_to(uart, &(struct shim_line){ .vm_fd = vm_fd, .eventfd = -1, .gsi = gsi });
}

/* The interrupt as an eventfd that an irqfd listens to; -1 disconnects. 0 or -errno. */
int shim_uart_connect_eventfd(struct shim_uart *uart, int eventfd)
{
	return connect_to(uart, &(struct shim_line){ .vm_fd = -1, .eventfd = eventfd });
}

/* The interrupt as a pin of an I/O APIC of ours. */
void shim_uart_connect_ioapic(struct shim_uart *uart, struct shim_ioapic *ioapic, uint32_t pin)
{
	connect_to(uart, &(struct shim_line){ .vm_fd = -1, .eventfd = -1, .ioapic = ioapic,
					      .gsi = pin });
}
