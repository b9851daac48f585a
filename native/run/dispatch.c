/*
 * Dispatch: which port or guest physical address belongs to whom.
 *
 * A bus has one sorted table of ranges for ports, one for MMIO, and two for MSRs: reads and writes.
 * vCPU threads look addresses up without a lock while Python adds and removes ranges, so a
 * published table is never changed: a claim copies it, and the old one is freed once no vCPU can
 * still be looking at it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

struct shim_table {
	struct shim_table *older; /* retired tables, chained */
	uint64_t retired_at;      /* the generation that came instead */
	size_t length;
	struct shim_range ranges[];
};

/* The last address of each space. */
static const uint64_t last_of[SHIM_SPACES] = {
	[SHIM_IO] = UINT16_MAX, [SHIM_MMIO] = UINT64_MAX,
	[SHIM_RDMSR] = UINT32_MAX, [SHIM_WRMSR] = UINT32_MAX,
};

static struct shim_table *table_new(size_t length)
{
	struct shim_table *table =
		calloc(1, sizeof(*table) + length * sizeof(struct shim_range));

	if (table)
		table->length = length;
	return table;
}

static void in_child(struct shim_at_fork *at_fork)
{
	pthread_mutex_init(&SHIM_OF_FORK(struct shim_bus, at_fork)->lock, NULL);
}

struct shim_bus *shim_bus_new(void)
{
	struct shim_bus *bus = calloc(1, sizeof(*bus));

	if (!bus)
		return NULL;
	bus->generation = 1;
	pthread_mutex_init(&bus->lock, NULL);
	shim_at_fork(&bus->at_fork, in_child);
	for (unsigned space = 0; space < SHIM_SPACES; space++) {
		atomic_init(&bus->tables[space], table_new(0));
		if (!bus->tables[space]) {
			shim_bus_free(bus);
			return NULL;
		}
	}
	return bus;
}

void shim_bus_free(struct shim_bus *bus)
{
	if (!bus)
		return;
	while (bus->retired) {
		struct shim_table *table = bus->retired;

		bus->retired = table->older;
		free(table);
	}
	for (unsigned space = 0; space < SHIM_SPACES; space++)
		free(bus->tables[space]);
	shim_not_at_fork(&bus->at_fork);
	pthread_mutex_destroy(&bus->lock);
	free(bus);
}

/* The index of the first range that ends at or after `address`. */
static size_t lower_bound(const struct shim_table *table, uint64_t address)
{
	size_t low = 0, high = table->length;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (table->ranges[middle].last < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* From here on what the tables have stays, until shim_run() enters the guest or ends. The store
 * comes before any look, for all to see: who reclaims sees it, or we see the newer table. */
void shim_bus_look(struct shim_vcpu *vcpu)
{
	if (!atomic_load_explicit(&vcpu->looking, memory_order_relaxed))
		atomic_store(&vcpu->looking, atomic_load(&vcpu->bus->generation));
}

/* An access belongs to the range its first byte lies in, as wide as it is: a 16-bit OUT to a device
 * of one port is that device's. */
const struct shim_range *shim_bus_find(struct shim_vcpu *vcpu, unsigned space, uint64_t address)
{
	const struct shim_table *table;
	size_t i;

	shim_bus_look(vcpu);
	table = atomic_load(&vcpu->bus->tables[space]);
	i = lower_bound(table, address);
	return i < table->length && table->ranges[i].first <= address ? &table->ranges[i] : NULL;
}

static void publish(struct shim_bus *bus, unsigned space, struct shim_table *table)
{
	struct shim_table *old = atomic_exchange(&bus->tables[space], table);

	old->older = bus->retired;
	old->retired_at = atomic_fetch_add(&bus->generation, 1) + 1;
	bus->retired = old;
}

uint64_t shim_bus_generation(struct shim_bus *bus)
{
	return atomic_load(&bus->generation);
}

/*
 * Frees the tables that nobody looks at any longer. oldest[0]: what was taken out of the tables
 * when they became this generation, or before, can go, too; oldest[1]: the same for what records
 * in vCPUs' rings mean by their numbers.
 */
void shim_bus_reclaim(struct shim_bus *bus, uint64_t *oldest)
{
	struct shim_table **link = &bus->retired;

	pthread_mutex_lock(&bus->lock);
	oldest[0] = oldest[1] = atomic_load(&bus->generation);
	for (struct shim_vcpu *vcpu = bus->vcpus; vcpu; vcpu = vcpu->next_of_bus) {
		uint64_t looking = atomic_load(&vcpu->looking);
		uint64_t ring = __atomic_load_n(&vcpu->ring_looking, __ATOMIC_SEQ_CST);

		if (looking && looking < oldest[0])
			oldest[0] = looking;
		if (__atomic_load_n(&vcpu->ring_length, __ATOMIC_SEQ_CST) && ring < oldest[1])
			oldest[1] = ring;
	}
	if (oldest[0] < oldest[1])
		oldest[1] = oldest[0];
	while (*link) {
		struct shim_table *table = *link;

		if (table->retired_at > oldest[0]) {
			link = &table->older;
			continue;
		}
		*link = table->older;
		free(table);
	}
	pthread_mutex_unlock(&bus->lock);
}

void shim_bus_join(struct shim_bus *bus, struct shim_vcpu *vcpu)
{
	pthread_mutex_lock(&bus->lock);
	vcpu->next_of_bus = bus->vcpus;
	bus->vcpus = vcpu;
	pthread_mutex_unlock(&bus->lock);
}

void shim_bus_part(struct shim_bus *bus, struct shim_vcpu *vcpu)
{
	struct shim_vcpu **link = &bus->vcpus;

	pthread_mutex_lock(&bus->lock);
	while (*link != vcpu)
		link = &(*link)->next_of_bus;
	*link = vcpu->next_of_bus;
	pthread_mutex_unlock(&bus->lock);
}

static int claim_locked(struct shim_bus *bus, unsigned space, const struct shim_range *range)
{
	struct shim_table *old = atomic_load(&bus->tables[space]), *table;
	size_t at = lower_bound(old, range->first);

	if (at < old->length && old->ranges[at].first <= range->last)
		return -EEXIST;
	table = table_new(old->length + 1);
	if (!table)
		return -ENOMEM;
	memcpy(table->ranges, old->ranges, at * sizeof(*range));
	table->ranges[at] = *range;
	memcpy(table->ranges + at + 1, old->ranges + at, (old->length - at) * sizeof(*range));
	publish(bus, space, table);
	return 0;
}

int shim_bus_claim(struct shim_bus *bus, unsigned space, uint64_t first, uint64_t length, int owner,
		   uint32_t handler, void *object)
{
	struct shim_range range = {
		.first = first, .last = first + length - 1, .owner = owner,
		.handler = handler, .object = object,
	};
	int error;

	if (!length || range.last < first || range.last > last_of[space])
		return -EINVAL;
	pthread_mutex_lock(&bus->lock);
	error = claim_locked(bus, space, &range);
	pthread_mutex_unlock(&bus->lock);
	return error;
}

static int release_locked(struct shim_bus *bus, unsigned space, uint64_t first)
{
	struct shim_table *old = atomic_load(&bus->tables[space]), *table;
	size_t at = lower_bound(old, first);

	if (at == old->length || old->ranges[at].first != first)
		return -ENOENT;
	table = table_new(old->length - 1);
	if (!table)
		return -ENOMEM;
	memcpy(table->ranges, old->ranges, at * sizeof(*old->ranges));
	memcpy(table->ranges + at, old->ranges + at + 1,
	       (table->length - at) * sizeof(*old->ranges));
	publish(bus, space, table);
	return 0;
}

int shim_bus_release(struct shim_bus *bus, unsigned space, uint64_t first)
{
	int error;

	pthread_mutex_lock(&bus->lock);
	error = release_locked(bus, space, first);
	pthread_mutex_unlock(&bus->lock);
	return error;
}

/* With handlers for some MSRs KVM asks about all that its filter denies: whether those without one
 * stay in here, as #GP. */
void shim_bus_quiet_msrs(struct shim_bus *bus, bool quiet)
{
	atomic_store(&bus->quiet_msrs, quiet);
}

/* Who gets the LAPICs' EOIs. It outlives the bus. NULL: they come out of shim_run(). */
void shim_bus_set_ioapic(struct shim_bus *bus, struct shim_ioapic *ioapic)
{
	atomic_store(&bus->ioapic, ioapic);
}

static int flush_table(const struct shim_table *table)
{
	int error = 0;

	for (size_t i = 0; i < table->length; i++) {
		const struct shim_range *range = &table->ranges[i];
		struct shim_device *device = range->object;

		if (range->owner == SHIM_OWNER_DEVICE && device->flush) {
			int result = device->flush(device);

			if (result && !error)
				error = result;
		}
	}
	return error;
}

/* Write out what the devices of this bus still hold; the first error, or 0. */
int shim_bus_flush(struct shim_vcpu *vcpu)
{
	int io, mmio;

	shim_bus_look(vcpu);
	io = flush_table(atomic_load(&vcpu->bus->tables[SHIM_IO]));
	mmio = flush_table(atomic_load(&vcpu->bus->tables[SHIM_MMIO]));

	return io ? io : mmio;
}
