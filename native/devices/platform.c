/*
 * The small devices of a PC that end a machine: keyboard controller, ACPI's PM1a registers, reset
 * control register, panic port. The run in which the guest touched one ends with SHIM_SYSTEM.
 */
#include <stdlib.h>

#include "shim.h"

static int system_stop(struct shim_vcpu *vcpu, enum shim_system event)
{
	vcpu->report.value = event;
	return SHIM_SYSTEM;
}

/* ------------------------------------------------------------------ i8042 */

/*
 * Intel 8042 as in the AT, without keyboard and mouse: what a kernel that probes it needs to be
 * done at once, and the pulse on the processor's reset line. Every command that has an answer gives
 * it before the port is read again; a byte for the keyboard times out at once.
 */
#define STATUS_OUTPUT_FULL 0x01
#define STATUS_SYSTEM 0x04
#define STATUS_COMMAND 0x08
#define STATUS_UNLOCKED 0x10
#define STATUS_TIMEOUT 0x40

#define COMMAND_READ_RAM 0x20  /* ..0x3f; 0x20 is the command byte */
#define COMMAND_WRITE_RAM 0x60 /* ..0x7f */
#define COMMAND_AUX_DISABLE 0xa7
#define COMMAND_AUX_ENABLE 0xa8
#define COMMAND_AUX_TEST 0xa9
#define COMMAND_SELF_TEST 0xaa
#define COMMAND_KEYBOARD_TEST 0xab
#define COMMAND_KEYBOARD_DISABLE 0xad
#define COMMAND_KEYBOARD_ENABLE 0xae
#define COMMAND_READ_INPUT_PORT 0xc0
#define COMMAND_READ_OUTPUT_PORT 0xd0
#define COMMAND_WRITE_OUTPUT_PORT 0xd1
#define COMMAND_WRITE_OUTPUT 0xd2
#define COMMAND_WRITE_AUX_OUTPUT 0xd3
#define COMMAND_WRITE_AUX 0xd4
#define COMMAND_READ_TEST_INPUTS 0xe0
#define COMMAND_PULSE 0xf0 /* ..0xff: bit n clear pulses line n of the output port */

#define BYTE_SYSTEM 0x04 /* of the command byte: the self-test has passed */
#define BYTE_KEYBOARD_OFF 0x10
#define BYTE_AUX_OFF 0x20
#define OUTPUT_RESET 0x01 /* of the output port, active low */
#define OUTPUT_A20 0x02
#define KEYBOARD_RESEND 0xfe

struct shim_i8042 {
	struct shim_device data, command; /* ports 0x60 and 0x64 */
	pthread_mutex_t lock;
	struct shim_at_fork at_fork;
	uint8_t status, output, ram[32], output_port;
	uint8_t pending; /* the command whose parameter is due, 0: none */
};

static void answer(struct shim_i8042 *i8042, uint8_t byte)
{
	i8042->output = byte;
	i8042->status = (i8042->status & ~STATUS_TIMEOUT) | STATUS_OUTPUT_FULL;
}

static int take_command(struct shim_i8042 *i8042, struct shim_vcpu *vcpu, uint8_t command)
{
	i8042->status |= STATUS_COMMAND;
	i8042->pending = 0;
	if (command >= COMMAND_PULSE)
		return command & OUTPUT_RESET ? SHIM_CONTINUE
					      : system_stop(vcpu, SHIM_RESET_I8042);
	if (command >= COMMAND_READ_RAM && command < COMMAND_READ_RAM + 32)
		answer(i8042, i8042->ram[command % 32]);
	else if (command >= COMMAND_WRITE_RAM && command < COMMAND_WRITE_RAM + 32)
		i8042->pending = command;
	switch (command) {
	case COMMAND_AUX_DISABLE:
		i8042->ram[0] |= BYTE_AUX_OFF;
		break;
	case COMMAND_AUX_ENABLE:
		i8042->ram[0] &= ~BYTE_AUX_OFF;
		break;
	case COMMAND_AUX_TEST:
		answer(i8042, 0x01); /* the clock line is stuck low: no mouse port */
		break;
	case COMMAND_SELF_TEST:
		i8042->ram[0] |= BYTE_SYSTEM;
		answer(i8042, 0x55);
		break;
	case COMMAND_KEYBOARD_TEST:
		answer(i8042, 0x00);
		break;
	case COMMAND_KEYBOARD_DISABLE:
		i8042->ram[0] |= BYTE_KEYBOARD_OFF;
		break;
	case COMMAND_KEYBOARD_ENABLE:
		i8042->ram[0] &= ~BYTE_KEYBOARD_OFF;
		break;
	case COMMAND_READ_INPUT_PORT:
		answer(i8042, 0x80); /* the keyboard is not locked */
		break;
	case COMMAND_READ_OUTPUT_PORT:
		answer(i8042, i8042->output_port);
		break;
	case COMMAND_READ_TEST_INPUTS:
		answer(i8042, 0x00);
		break;
	case COMMAND_WRITE_OUTPUT_PORT:
	case COMMAND_WRITE_OUTPUT:
	case COMMAND_WRITE_AUX_OUTPUT:
	case COMMAND_WRITE_AUX:
		i8042->pending = command;
		break;
	}
	return SHIM_CONTINUE;
}

static int take_data(struct shim_i8042 *i8042, struct shim_vcpu *vcpu, uint8_t byte)
{
	uint8_t command = i8042->pending;

	i8042->status &= ~STATUS_COMMAND;
	i8042->pending = 0;
	if (command >= COMMAND_WRITE_RAM && command < COMMAND_WRITE_RAM + 32) {
		i8042->ram[command % 32] = byte;
		return SHIM_CONTINUE;
	}
	switch (command) {
	case COMMAND_WRITE_OUTPUT_PORT:
		if (!(byte & OUTPUT_RESET))
			return system_stop(vcpu, SHIM_RESET_I8042);
		i8042->output_port = byte;
		break;
	case COMMAND_WRITE_OUTPUT:
	case COMMAND_WRITE_AUX_OUTPUT: /* not marked as the mouse's: that says there is none */
		answer(i8042, byte);
		break;
	case COMMAND_WRITE_AUX:
		break;
	default: /* for the keyboard */
		answer(i8042, KEYBOARD_RESEND);
		i8042->status |= STATUS_TIMEOUT;
	}
	return SHIM_CONTINUE;
}

static int i8042_data_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
			     uint8_t *data, unsigned size, bool is_write)
{
	struct shim_i8042 *i8042 = (struct shim_i8042 *)device;
	int stop = SHIM_CONTINUE;

	(void)offset, (void)size;
	pthread_mutex_lock(&i8042->lock);
	if (is_write) {
		stop = take_data(i8042, vcpu, data[0]);
	} else {
		data[0] = i8042->output;
		i8042->status &= ~(STATUS_OUTPUT_FULL | STATUS_TIMEOUT);
	}
	pthread_mutex_unlock(&i8042->lock);
	return stop;
}

static int i8042_command_access(struct shim_device *device, struct shim_vcpu *vcpu,
				uint64_t offset, uint8_t *data, unsigned size, bool is_write)
{
	struct shim_i8042 *i8042 =
		(struct shim_i8042 *)((char *)device - offsetof(struct shim_i8042, command));
	int stop = SHIM_CONTINUE;

	(void)offset, (void)size;
	pthread_mutex_lock(&i8042->lock);
	if (is_write)
		stop = take_command(i8042, vcpu, data[0]);
	else
		data[0] = i8042->status | (i8042->ram[0] & BYTE_SYSTEM ? STATUS_SYSTEM : 0);
	pthread_mutex_unlock(&i8042->lock);
	return stop;
}

static void i8042_in_child(struct shim_at_fork *at_fork)
{
	pthread_mutex_init(&SHIM_OF_FORK(struct shim_i8042, at_fork)->lock, NULL);
}

struct shim_i8042 *shim_i8042_new(void)
{
	struct shim_i8042 *i8042 = calloc(1, sizeof(*i8042));

	if (!i8042)
		return NULL;
	i8042->data.access = i8042_data_access;
	i8042->command.access = i8042_command_access;
	i8042->status = STATUS_UNLOCKED;
	i8042->ram[0] = BYTE_SYSTEM;
	i8042->output_port = OUTPUT_RESET | OUTPUT_A20;
	pthread_mutex_init(&i8042->lock, NULL);
	shim_at_fork(&i8042->at_fork, i8042_in_child);
	return i8042;
}

void shim_i8042_free(struct shim_i8042 *i8042)
{
	if (!i8042)
		return;
	shim_not_at_fork(&i8042->at_fork);
	pthread_mutex_destroy(&i8042->lock);
	free(i8042);
}

struct shim_device *shim_i8042_data(struct shim_i8042 *i8042)
{
	return &i8042->data;
}

struct shim_device *shim_i8042_command(struct shim_i8042 *i8042)
{
	return &i8042->command;
}

/* ------------------------------------------------------------------ ACPI PM1a */

/* ACPI Specification, "PM1 Event Grouping" and "PM1 Control Grouping": status, enable and control,
 * 16 bits each. Writing ones clears status. The machine is in ACPI mode from the start. */
enum { PM1_STATUS, PM1_ENABLE = 2, PM1_CONTROL = 4, PM1_SIZE = 6 };

#define PM1_EVENTS 0x0521      /* timer, global lock, power button, RTC */
#define PM1_POWER_BUTTON 0x01  /* in the upper byte of status and enable */
#define CONTROL_SCI_ENABLE 0x01
#define CONTROL_BUS_MASTER 0x02
#define CONTROL_SLEEP_TYPE 0x1c /* in the upper byte, as SLP_EN */
#define CONTROL_SLEEP_ENABLE 0x20
#define SLEEP_TYPE_S5 5 /* as kvmpy/boot/acpi.py has it in \_S5 */

struct shim_pm {
	struct shim_device device;
	pthread_mutex_t lock;
	struct shim_at_fork at_fork;
	struct shim_line line;
	uint8_t registers[PM1_SIZE];
};

static void update_sci(struct shim_pm *pm)
{
	uint8_t *registers = pm->registers;

	shim_line_set(&pm->line, (registers[PM1_STATUS] & registers[PM1_ENABLE]) |
					 (registers[PM1_STATUS + 1] & registers[PM1_ENABLE + 1]));
}

/* Whether it puts the machine to sleep, for ever: S5 is the only state that \_S5 and its like
 * offer. */
static bool pm_write(struct shim_pm *pm, unsigned index, uint8_t value)
{
	switch (index) {
	case PM1_STATUS:
	case PM1_STATUS + 1:
		pm->registers[index] &= ~value;
		break;
	case PM1_ENABLE:
		pm->registers[index] = value & (PM1_EVENTS & 0xff);
		break;
	case PM1_ENABLE + 1:
		pm->registers[index] = value & (PM1_EVENTS >> 8);
		break;
	case PM1_CONTROL:
		pm->registers[index] = (value & CONTROL_BUS_MASTER) | CONTROL_SCI_ENABLE;
		break;
	case PM1_CONTROL + 1:
		pm->registers[index] = value & CONTROL_SLEEP_TYPE;
		return (value & CONTROL_SLEEP_ENABLE) &&
		       (value & CONTROL_SLEEP_TYPE) >> 2 == SLEEP_TYPE_S5;
	}
	return false;
}

static int pm_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
		     uint8_t *data, unsigned size, bool is_write)
{
	struct shim_pm *pm = (struct shim_pm *)device;
	int stop = SHIM_CONTINUE;

	pthread_mutex_lock(&pm->lock);
	for (unsigned i = 0; i < size && offset + i < PM1_SIZE; i++) {
		if (!is_write)
			data[i] = pm->registers[offset + i];
		else if (pm_write(pm, offset + i, data[i]))
			stop = system_stop(vcpu, SHIM_POWER_OFF_ACPI);
	}
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
	return stop;
}

static void pm_in_child(struct shim_at_fork *at_fork)
{
	struct shim_pm *pm = SHIM_OF_FORK(struct shim_pm, at_fork);

	shim_line_at_fork(&pm->line, &pm->lock);
}

struct shim_pm *shim_pm_new(void)
{
	struct shim_pm *pm = calloc(1, sizeof(*pm));

	if (!pm)
		return NULL;
	pm->device.access = pm_access;
	pm->registers[PM1_CONTROL] = CONTROL_SCI_ENABLE;
	shim_line_init(&pm->line);
	pthread_mutex_init(&pm->lock, NULL);
	shim_at_fork(&pm->at_fork, pm_in_child);
	return pm;
}

void shim_pm_free(struct shim_pm *pm)
{
	if (!pm)
		return;
	shim_not_at_fork(&pm->at_fork);
	shim_line_drop(&pm->line);
	pthread_mutex_destroy(&pm->lock);
	free(pm);
}

/* As shim_uart_assert(). */
void shim_pm_assert(struct shim_pm *pm)
{
	pthread_mutex_lock(&pm->lock);
	shim_line_assert(&pm->line);
	pthread_mutex_unlock(&pm->lock);
}

static void connect_sci(struct shim_pm *pm, const struct shim_line *to)
{
	pthread_mutex_lock(&pm->lock);
	shim_line_connect(&pm->line, to);
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
}

/* The SCI as a line of the in-kernel irqchip; vm_fd -1 disconnects. */
void shim_pm_connect_line(struct shim_pm *pm, int vm_fd, uint32_t gsi)
{
	connect_sci(pm, &(struct shim_line){ .vm_fd = vm_fd, .eventfd = -1, .gsi = gsi });
}

/* The SCI as a pin of an I/O APIC of ours. */
void shim_pm_connect_ioapic(struct shim_pm *pm, struct shim_ioapic *ioapic, uint32_t pin)
{
	connect_sci(pm, &(struct shim_line){ .vm_fd = -1, .eventfd = -1, .ioapic = ioapic,
					     .gsi = pin });
}

/* Any thread. False when the guest has not enabled the button. */
bool shim_pm_press_power_button(struct shim_pm *pm)
{
	bool enabled;

	pthread_mutex_lock(&pm->lock);
	pm->registers[PM1_STATUS + 1] |= PM1_POWER_BUTTON;
	enabled = pm->registers[PM1_ENABLE + 1] & PM1_POWER_BUTTON;
	update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
	return enabled;
}

/* ------------------------------------------------------------------ reset control register */

/* Intel I/O Controller Hub, "Reset Control Register": bit 2 set resets the processor. */
#define RESET_CPU 0x04
#define RESET_STORED 0x0a /* SYS_RST, FULL_RST */

struct reset_control {
	struct shim_device device;
	_Atomic uint8_t value;
};

static int reset_control_access(struct shim_device *device, struct shim_vcpu *vcpu,
				uint64_t offset, uint8_t *data, unsigned size, bool is_write)
{
	struct reset_control *control = (struct reset_control *)device;

	(void)offset, (void)size;
	if (!is_write) {
		data[0] = control->value;
		return SHIM_CONTINUE;
	}
	control->value = data[0] & RESET_STORED;
	return data[0] & RESET_CPU ? system_stop(vcpu, SHIM_RESET_CONTROL) : SHIM_CONTINUE;
}

struct shim_device *shim_reset_control_new(void)
{
	struct reset_control *control = calloc(1, sizeof(*control));

	if (!control)
		return NULL;
	control->device.access = reset_control_access;
	return &control->device;
}

/* ------------------------------------------------------------------ pvpanic */

/* QEMU, docs/specs/pvpanic: a read tells the events that are understood. */
#define PVPANIC_PANICKED 0x01
#define PVPANIC_CRASH_LOADED 0x02 /* panicked, and its crash kernel goes on */

static int pvpanic_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
			  uint8_t *data, unsigned size, bool is_write)
{
	(void)device, (void)offset, (void)size;
	if (!is_write)
		data[0] = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
	else if (data[0] & PVPANIC_PANICKED)
		return system_stop(vcpu, SHIM_PANICKED);
	else if (data[0] & PVPANIC_CRASH_LOADED)
		return system_stop(vcpu, SHIM_CRASH_LOADED);
	return SHIM_CONTINUE;
}

struct shim_device *shim_pvpanic_new(void)
{
	struct shim_device *device = calloc(1, sizeof(*device));

	if (device)
		device->access = pvpanic_access;
	return device;
}
