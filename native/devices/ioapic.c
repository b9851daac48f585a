/*
 * I/O APIC (Intel 82093AA data sheet; its EOI register and version 0x20 from the I/O Controller
 * Hubs), for a VM of whose interrupt controllers KVM has the LAPICs alone: KVM_CAP_SPLIT_IRQCHIP.
 *
 * A redirection entry is an MSI in other words. An unmasked pin's is the route of the GSI of its
 * number, so what an irqfd raises ends in a LAPIC and never comes by here; what a device raises
 * with shim_ioapic_set_line() becomes KVM_SIGNAL_MSI.
 *
 * Level-triggered, a device's line has its remote IRR here: set when a LAPIC has taken the
 * interrupt, cleared by the EOI, which KVM hands over as an exit because the pin has a route. So a
 * pin keeps its route while it is masked and its EOI is due. An irqfd's interrupts are not seen
 * and leave remote IRR alone; its user can have an eventfd for "look again": see
 * shim_ioapic_resample().
 *
 * Locks: a device's own first, then the one here. It is held over the ioctls: tables reach KVM in
 * the order in which entries were written, and no interrupt is sent before KVM has its route.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "shim.h"

enum { IOREGSEL = 0x00, IOWIN = 0x10, EOI = 0x40 };
enum { IOAPICID, IOAPICVER, IOAPICARB, IOREDTBL = 0x10 };

#define VERSION (0x20 | (SHIM_IOAPIC_PINS - 1) << 16)
#define ID_SHIFT 24
#define ID_MASK 0x0f

/* Of a redirection entry */
#define VECTOR 0xffull
#define MODE_SHIFT 8
#define MODE_MASK 7
#define LOGICAL (1ull << 11)
#define REMOTE_IRR (1ull << 14)
#define LEVEL (1ull << 15)
#define MASKED (1ull << 16)
#define WRITABLE_LOW 0x1afffull /* not: delivery status, remote IRR, the reserved bits */
#define WRITABLE_HIGH 0xff000000ull
#define DESTINATION_SHIFT 56

enum { FIXED, LOWEST_PRIORITY, SMI, NMI = 4, INIT };
/* ExtINT asks an 8259 for the vector, and there is none; the others are reserved. */
#define DELIVERED (1 << FIXED | 1 << LOWEST_PRIORITY | 1 << SMI | 1 << NMI | 1 << INIT)

/* SDM vol. 3, "Message Signalled Interrupts" */
#define MSI_BASE 0xfee00000u
#define MSI_DESTINATION_SHIFT 12
#define MSI_LOGICAL 0x4
#define MSI_VECTOR_AND_MODE 0x7ff
#define MSI_LEVEL_ASSERTED 0xc000

struct message {
	uint32_t address, data; /* address 0: none */
};

struct shim_ioapic {
	struct shim_device device;
	_Atomic unsigned references;
	pthread_mutex_t lock;
	struct shim_at_fork at_fork;
	int vm_fd; /* -1: in no VM */
	uint8_t select, id;
	uint32_t lines; /* that devices hold up, a bit for each pin */
	uint64_t entries[SHIM_IOAPIC_PINS];
	int resample[SHIM_IOAPIC_PINS];           /* eventfds, -1: none */
	struct message routes[SHIM_IOAPIC_PINS];  /* as KVM has them */
	struct kvm_irq_routing *table;            /* of which the first are not ours */
	unsigned others;
};

/* ------------------------------------------------------------------ entries */

static unsigned mode_of(uint64_t entry)
{
	return entry >> MODE_SHIFT & MODE_MASK;
}

/* SMI, NMI and INIT are edges whatever the entry says. */
static bool is_level(uint64_t entry)
{
	return (entry & LEVEL) && mode_of(entry) <= LOWEST_PRIORITY;
}

static struct message message_of(uint64_t entry)
{
	struct message none = { 0, 0 }, message;

	if (((entry & MASKED) && !(entry & REMOTE_IRR)) || !(DELIVERED >> mode_of(entry) & 1))
		return none;
	message.address = MSI_BASE | (uint32_t)(entry >> DESTINATION_SHIFT) << MSI_DESTINATION_SHIFT |
			  (entry & LOGICAL ? MSI_LOGICAL : 0);
	message.data = (entry & MSI_VECTOR_AND_MODE) | (is_level(entry) ? MSI_LEVEL_ASSERTED : 0);
	return message;
}

/* ------------------------------------------------------------------ KVM's routing table */

static int set_table(struct shim_ioapic *ioapic)
{
	struct kvm_irq_routing *table = ioapic->table;

	table->nr = ioapic->others;
	for (unsigned pin = 0; pin < SHIM_IOAPIC_PINS; pin++) {
		struct message message = ioapic->routes[pin];

		if (message.address)
			table->entries[table->nr++] = (struct kvm_irq_routing_entry){
				.gsi = pin, .type = KVM_IRQ_ROUTING_MSI,
				.u.msi = { .address_lo = message.address, .data = message.data },
			};
	}
	if (ioapic->vm_fd < 0)
		return 0;
	return ioctl(ioapic->vm_fd, KVM_SET_GSI_ROUTING, table) < 0 ? -errno : 0;
}

/* Have KVM know the entry of `pin`, if it is news. What KVM refuses is tried again next time. */
static int update_route(struct shim_ioapic *ioapic, unsigned pin)
{
	struct message new = message_of(ioapic->entries[pin]), old = ioapic->routes[pin];
	int error;

	if (new.address == old.address && new.data == old.data)
		return 0;
	ioapic->routes[pin] = new;
	error = set_table(ioapic);
	if (error)
		ioapic->routes[pin] = old;
	return error;
}

/* ------------------------------------------------------------------ interrupts */

/* Whether a LAPIC has taken it. */
static bool send(struct shim_ioapic *ioapic, unsigned pin)
{
	struct kvm_msi msi = {
		.address_lo = ioapic->routes[pin].address, .data = ioapic->routes[pin].data,
	};

	return msi.address_lo && ioapic->vm_fd >= 0 &&
	       ioctl(ioapic->vm_fd, KVM_SIGNAL_MSI, &msi) > 0;
}

static bool is_up(const struct shim_ioapic *ioapic, unsigned pin)
{
	return ioapic->lines >> pin & 1;
}

/* A level that is up interrupts unless it is masked or has its EOI to come. */
static void service_level(struct shim_ioapic *ioapic, unsigned pin)
{
	uint64_t entry = ioapic->entries[pin];

	if (is_up(ioapic, pin) && is_level(entry) && !(entry & (MASKED | REMOTE_IRR)) &&
	    send(ioapic, pin))
		ioapic->entries[pin] |= REMOTE_IRR;
}

static void ask_again(struct shim_ioapic *ioapic, unsigned pin)
{
	uint64_t one = 1;

	/* It cannot fail: the counter never nears its limit. */
	if (ioapic->resample[pin] >= 0 &&
	    write(ioapic->resample[pin], &one, sizeof(one)) < 0)
		ioapic->resample[pin] = -1;
}

static bool is_open_level(uint64_t entry)
{
	return is_level(entry) && !(entry & MASKED);
}

static int end_of_interrupt(struct shim_ioapic *ioapic, uint8_t vector)
{
	int error = 0;

	for (unsigned pin = 0; pin < SHIM_IOAPIC_PINS; pin++) {
		uint64_t entry = ioapic->entries[pin];
		int result;

		if (!is_level(entry) || (entry & VECTOR) != vector)
			continue;
		ioapic->entries[pin] = entry & ~REMOTE_IRR;
		result = update_route(ioapic, pin);
		if (result)
			error = result;
		if (is_open_level(entry))
			ask_again(ioapic, pin);
		service_level(ioapic, pin);
	}
	return error;
}

/* A line that a device drives; any thread. */
void shim_ioapic_set_line(struct shim_ioapic *ioapic, unsigned pin, bool level)
{
	bool rises;

	if (pin >= SHIM_IOAPIC_PINS)
		return;
	pthread_mutex_lock(&ioapic->lock);
	rises = level && !is_up(ioapic, pin);
	ioapic->lines = (ioapic->lines & ~(1u << pin)) | (uint32_t)level << pin;
	if (is_level(ioapic->entries[pin]))
		service_level(ioapic, pin);
	else if (rises && !(ioapic->entries[pin] & MASKED))
		send(ioapic, pin);
	pthread_mutex_unlock(&ioapic->lock);
}

/* ------------------------------------------------------------------ registers */

static uint32_t read_window(const struct shim_ioapic *ioapic)
{
	unsigned index = ioapic->select - IOREDTBL;

	switch (ioapic->select) {
	case IOAPICID:
	case IOAPICARB:
		return (uint32_t)ioapic->id << ID_SHIFT;
	case IOAPICVER:
		return VERSION;
	default:
		if (ioapic->select < IOREDTBL || index / 2 >= SHIM_IOAPIC_PINS)
			return 0;
		return ioapic->entries[index / 2] >> 32 * (index % 2);
	}
}

static int write_entry(struct shim_ioapic *ioapic, unsigned index, uint32_t value)
{
	unsigned pin = index / 2;
	uint64_t old = ioapic->entries[pin], entry;
	int error;

	if (index % 2)
		entry = (uint32_t)old | (value & WRITABLE_HIGH) << 32;
	else
		entry = (old & ~WRITABLE_LOW) | (value & WRITABLE_LOW);
	/* Kernels clear it like that where there is no EOI register. */
	if (!is_level(entry))
		entry &= ~REMOTE_IRR;
	ioapic->entries[pin] = entry;
	error = update_route(ioapic, pin);
	/* What an irqfd raised while it was masked went nowhere. */
	if (is_open_level(entry) && !is_open_level(old))
		ask_again(ioapic, pin);
	service_level(ioapic, pin);
	return error;
}

static int write_register(struct shim_ioapic *ioapic, uint64_t offset, uint32_t value)
{
	switch (offset) {
	case IOREGSEL:
		ioapic->select = value;
		return 0;
	case IOWIN:
		if (ioapic->select == IOAPICID)
			ioapic->id = value >> ID_SHIFT & ID_MASK;
		if (ioapic->select < IOREDTBL ||
		    ioapic->select >= IOREDTBL + 2 * SHIM_IOAPIC_PINS)
			return 0;
		return write_entry(ioapic, ioapic->select - IOREDTBL, value);
	case EOI:
		return end_of_interrupt(ioapic, value);
	default:
		return 0;
	}
}

static uint32_t read_register(const struct shim_ioapic *ioapic, uint64_t offset)
{
	switch (offset) {
	case IOREGSEL:
		return ioapic->select;
	case IOWIN:
		return read_window(ioapic);
	default:
		return 0;
	}
}

static int stop_for(struct shim_vcpu *vcpu, int error)
{
	if (!error)
		return SHIM_CONTINUE;
	vcpu->report.value = -error;
	return SHIM_ROUTING_ERROR;
}

/* Registers have 32 bits: a narrower write leaves the others 0, as KVM's own I/O APIC has it, and
 * what a wider access has more, or begins elsewhere, is not there. */
static int ioapic_access(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
			 uint8_t *data, unsigned size, bool is_write)
{
	struct shim_ioapic *ioapic = (struct shim_ioapic *)device;
	uint32_t value = 0;
	unsigned length = size < sizeof(value) ? size : sizeof(value);
	int error = 0;

	if (is_write)
		memcpy(&value, data, length);
	pthread_mutex_lock(&ioapic->lock);
	if (is_write)
		error = write_register(ioapic, offset, value);
	else
		value = read_register(ioapic, offset);
	pthread_mutex_unlock(&ioapic->lock);
	if (!is_write) {
		memset(data, 0, size);
		memcpy(data, &value, length);
	}
	return stop_for(vcpu, error);
}

/* A LAPIC's EOI: KVM_EXIT_IOAPIC_EOI. */
int shim_ioapic_eoi(struct shim_ioapic *ioapic, struct shim_vcpu *vcpu, uint8_t vector)
{
	int error;

	pthread_mutex_lock(&ioapic->lock);
	error = end_of_interrupt(ioapic, vector);
	pthread_mutex_unlock(&ioapic->lock);
	return stop_for(vcpu, error);
}

/* ------------------------------------------------------------------ in a VM */

static struct kvm_irq_routing *table_with(const struct kvm_irq_routing *others)
{
	struct kvm_irq_routing *table = calloc(
		1, sizeof(*table) + (others->nr + SHIM_IOAPIC_PINS) * sizeof(others->entries[0]));

	if (table)
		memcpy(table->entries, others->entries, others->nr * sizeof(others->entries[0]));
	return table;
}

static int set_others(struct shim_ioapic *ioapic, const struct kvm_irq_routing *others)
{
	struct kvm_irq_routing *old = ioapic->table, *table = table_with(others);
	unsigned old_others = ioapic->others;
	int error;

	if (!table)
		return -ENOMEM;
	ioapic->table = table;
	ioapic->others = others->nr;
	error = set_table(ioapic);
	if (error) {
		ioapic->table = old;
		ioapic->others = old_others;
	}
	free(error ? table : old);
	return error;
}

/* The VM's routes to GSIs that are no pins here. 0 or -errno. */
int shim_ioapic_set_others(struct shim_ioapic *ioapic, const struct kvm_irq_routing *others)
{
	int error;

	pthread_mutex_lock(&ioapic->lock);
	error = set_others(ioapic, others);
	pthread_mutex_unlock(&ioapic->lock);
	return error;
}

/* From now on the VM's whole routing table is set here: `others` is what it has beside the pins.
 * 0 or -errno. */
int shim_ioapic_connect(struct shim_ioapic *ioapic, int vm_fd, const struct kvm_irq_routing *others)
{
	int error;

	pthread_mutex_lock(&ioapic->lock);
	ioapic->vm_fd = vm_fd;
	error = set_others(ioapic, others);
	if (error)
		ioapic->vm_fd = -1;
	for (unsigned pin = 0; !error && pin < SHIM_IOAPIC_PINS; pin++)
		service_level(ioapic, pin);
	pthread_mutex_unlock(&ioapic->lock);
	return error;
}

/* KVM keeps the routes it has. An EOI that was due is taken as made. */
void shim_ioapic_disconnect(struct shim_ioapic *ioapic)
{
	pthread_mutex_lock(&ioapic->lock);
	ioapic->vm_fd = -1;
	ioapic->others = 0;
	for (unsigned pin = 0; pin < SHIM_IOAPIC_PINS; pin++) {
		ioapic->entries[pin] &= ~REMOTE_IRR;
		ioapic->routes[pin] = message_of(ioapic->entries[pin]);
		ioapic->resample[pin] = -1;
	}
	pthread_mutex_unlock(&ioapic->lock);
}

/*
 * For an irqfd on a level-triggered pin: `eventfd` is signalled at the EOI, and when the pin is
 * unmasked; whoever has the line up then signals the irqfd again. It is KVM_IRQFD_FLAG_RESAMPLE,
 * which KVM itself has for its own I/O APIC only. -1 takes it back, as it must before it is closed.
 * -EBUSY: there is one.
 */
int shim_ioapic_resample(struct shim_ioapic *ioapic, unsigned pin, int eventfd)
{
	int error = 0;

	if (pin >= SHIM_IOAPIC_PINS)
		return -EINVAL;
	pthread_mutex_lock(&ioapic->lock);
	if (eventfd >= 0 && ioapic->resample[pin] >= 0)
		error = -EBUSY;
	else
		ioapic->resample[pin] = eventfd;
	pthread_mutex_unlock(&ioapic->lock);
	return error;
}

/* All but the base address, which is the bus's. */
void shim_ioapic_state(struct shim_ioapic *ioapic, struct kvm_ioapic_state *state)
{
	pthread_mutex_lock(&ioapic->lock);
	state->ioregsel = ioapic->select;
	state->id = ioapic->id;
	state->irr = ioapic->lines;
	for (unsigned pin = 0; pin < SHIM_IOAPIC_PINS; pin++)
		state->redirtbl[pin].bits = ioapic->entries[pin];
	pthread_mutex_unlock(&ioapic->lock);
}

/* Address and data for each pin, address 0 for none. */
void shim_ioapic_routes(struct shim_ioapic *ioapic, uint32_t *words)
{
	pthread_mutex_lock(&ioapic->lock);
	memcpy(words, ioapic->routes, sizeof(ioapic->routes));
	pthread_mutex_unlock(&ioapic->lock);
}

/* ------------------------------------------------------------------ life */

static void in_child(struct shim_at_fork *at_fork)
{
	struct shim_ioapic *ioapic = SHIM_OF_FORK(struct shim_ioapic, at_fork);

	pthread_mutex_init(&ioapic->lock, NULL);
	ioapic->vm_fd = -1;
	for (unsigned pin = 0; pin < SHIM_IOAPIC_PINS; pin++)
		ioapic->resample[pin] = -1;
}

struct shim_ioapic *shim_ioapic_new(void)
{
	static const struct kvm_irq_routing none;
	struct shim_ioapic *ioapic = calloc(1, sizeof(*ioapic));

	if (!ioapic)
		return NULL;
	ioapic->table = table_with(&none);
	if (!ioapic->table) {
		free(ioapic);
		return NULL;
	}
	ioapic->device.access = ioapic_access;
	ioapic->references = 1;
	ioapic->vm_fd = -1;
	for (unsigned pin = 0; pin < SHIM_IOAPIC_PINS; pin++) {
		ioapic->entries[pin] = MASKED;
		ioapic->resample[pin] = -1;
	}
	pthread_mutex_init(&ioapic->lock, NULL);
	shim_at_fork(&ioapic->at_fork, in_child);
	return ioapic;
}

/* Whoever keeps a pointer holds it: a device's line may outlive the I/O APIC's own face. */
void shim_ioapic_hold(struct shim_ioapic *ioapic)
{
	ioapic->references++;
}

void shim_ioapic_put(struct shim_ioapic *ioapic)
{
	if (!ioapic || --ioapic->references)
		return;
	shim_not_at_fork(&ioapic->at_fork);
	pthread_mutex_destroy(&ioapic->lock);
	free(ioapic->table);
	free(ioapic);
}
