/*
 * The dirty ring over a file that plays KVM's part: flags, order, wrapping, and its end with the
 * vCPU's.
 */
#define _GNU_SOURCE /* memfd_create */
#include "fake_kvm.h"

#define ENTRIES 256

static const struct step nothing[] = { { 0 } };
static struct kvm_dirty_gfn *kernel; /* KVM's own view of the ring */
static uint64_t words[2 * ENTRIES];

static void begin_ring(void)
{
	off_t at = KVM_DIRTY_LOG_PAGE_OFFSET * 4096;

	begin(nothing, 0);
	CHECK_EQUAL(ftruncate(vcpu->fd, at + ENTRIES * sizeof(*kernel)), 0);
	kernel = mmap(NULL, ENTRIES * sizeof(*kernel), PROT_READ | PROT_WRITE, MAP_SHARED,
		      vcpu->fd, at);
	CHECK(kernel != MAP_FAILED);
	CHECK_EQUAL(shim_dirty_map(vcpu, ENTRIES), 0);
}

static void end_ring(void)
{
	munmap(kernel, ENTRIES * sizeof(*kernel));
	end();
}

static void note(unsigned index, uint32_t slot, uint64_t offset)
{
	struct kvm_dirty_gfn *entry = &kernel[index % ENTRIES];

	entry->slot = slot;
	entry->offset = offset;
	__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
}

static void entries_come_in_order_and_are_marked(void)
{
	begin_ring();
	CHECK_EQUAL(shim_dirty_harvest(vcpu, words, ENTRIES), 0);
	note(0, 3, 7);
	note(1, 0x10002, 1ull << 40);
	CHECK_EQUAL(shim_dirty_harvest(vcpu, words, ENTRIES), 2);
	CHECK_EQUAL(words[0], 3);
	CHECK_EQUAL(words[1], 7);
	CHECK_EQUAL(words[2], 0x10002);
	CHECK_EQUAL(words[3], 1ull << 40);
	CHECK_EQUAL(kernel[0].flags, KVM_DIRTY_GFN_F_RESET);
	CHECK_EQUAL(kernel[1].flags, KVM_DIRTY_GFN_F_RESET);
	CHECK_EQUAL(kernel[2].flags, 0);
	CHECK_EQUAL(shim_dirty_harvest(vcpu, words, ENTRIES), 0);
	end_ring();
}

static void it_wraps_and_keeps_to_the_room_given(void)
{
	unsigned next = 0, seen = 0;

	begin_ring();
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < 100; i++, next++)
			note(next, 1, next);
		for (unsigned count; (count = shim_dirty_harvest(vcpu, words, 33)); ) {
			CHECK(count <= 33);
			for (unsigned i = 0; i < count; i++)
				CHECK_EQUAL(words[2 * i + 1], seen++);
		}
		for (unsigned i = 0; i < ENTRIES; i++)
			kernel[i].flags = 0; /* KVM_RESET_DIRTY_RINGS */
	}
	CHECK_EQUAL(seen, next);
	end_ring();
}

static void an_entry_that_was_harvested_is_none(void)
{
	begin_ring();
	for (unsigned i = 0; i < ENTRIES; i++)
		note(i, 0, i);
	CHECK_EQUAL(shim_dirty_harvest(vcpu, words, ENTRIES), ENTRIES);
	CHECK_EQUAL(shim_dirty_harvest(vcpu, words, ENTRIES), 0);
	end_ring();
}

static void sizes_that_cannot_be(void)
{
	begin(nothing, 0);
	CHECK_EQUAL(shim_dirty_harvest(vcpu, words, ENTRIES), 0); /* no ring */
	CHECK_EQUAL(shim_dirty_map(vcpu, 0), -EINVAL);
	CHECK_EQUAL(shim_dirty_map(vcpu, 100), -EINVAL);
	end();
	begin_ring();
	CHECK_EQUAL(shim_dirty_map(vcpu, ENTRIES), -EEXIST);
	end_ring();
}

static void a_closed_vcpu_has_no_entries(void)
{
	begin_ring();
	note(0, 1, 1);
	CHECK_EQUAL(shim_vcpu_close(vcpu), 0);
	CHECK_EQUAL(shim_dirty_harvest(vcpu, words, ENTRIES), 0);
	CHECK_EQUAL(kernel[0].flags, KVM_DIRTY_GFN_F_DIRTY);
	end_ring();
}

int main(void)
{
	entries_come_in_order_and_are_marked();
	it_wraps_and_keeps_to_the_room_given();
	an_entry_that_was_harvested_is_none();
	sizes_that_cannot_be();
	a_closed_vcpu_has_no_entries();
	puts("dirty: ok");
	return 0;
}
