/*
 * The C shim of kvmpy: what must not wait for Python.
 *
 * run/       what a vCPU's run is made of
 *   run.c       KVM_RUN loop, completion
 *   registers.c the page of live registers
 *   exits.c     kvm_run's union, laid flat for Python
 *   replies.c   the answers to exits that are no access: MSRs, hypercalls
 *   kick.c      getting a vCPU out of the guest: flag + directed signal, timeouts, Ctrl-C
 *   pause.c     keeping it out for a while
 *   place.c     the pCPUs its thread may use, and the thread's scheduling
 *   access.c    what a KVM_RUN came back with, and who answers it
 *   dispatch.c  which port or guest physical address belongs to whom
 *   coalesce.c  KVM's ring of coalesced writes
 *   dirty.c     a vCPU's dirty ring
 *   vcpu.c      a vCPU's file descriptor, its mapping and its life
 *   fork.c      what a fork()ed child finds
 * devices/   those of a PC, and what they are built of
 *   sink.c      where a device's output bytes go
 *   line.c      a device's interrupt line
 *   uart.c      16550A
 *   ports.c     debug console, debug exit, POST port
 *   platform.c  i8042, ACPI PM1a, reset control, panic port
 *   rtc.c       MC146818A
 *   ioapic.c    82093AA, beside LAPICs that are KVM's
 * virtio/    virtio-mmio devices (virtio.h)
 * watch/     handout.c: a running machine shows its counters to other processes
 *
 * Nothing here knows Python. Every function that can fail returns a negative errno.
 */
#ifndef KVMPY_SHIM_H
#define KVMPY_SHIM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "kvm_compat.h"

/* Before what Python sees of the shim too: native/declarations.py reads it from here. */
#define API

/* Why shim_run() or shim_resume() came back. The first group is resumable: the caller does its
 * part and calls shim_resume(); the second ends the run. */
API enum shim_stop {
	SHIM_ACCESS = 0, /* a Python handler owns the port or address: report.* describes the access */
	SHIM_RING = 1,   /* the ring of deferred writes is full */
	SHIM_DRAIN = 2,  /* a sink without a file descriptor is full */
	SHIM_SIGNAL = 3, /* a signal that is not ours arrived: let Python run its handlers */
	SHIM_MSR = 4,    /* a Python handler owns the MSR report.address: as SHIM_ACCESS */
	SHIM_PAUSED = 5, /* kept out of the guest: shim_resume() waits; signals meanwhile as above */

	SHIM_EXIT = 8,        /* an exit nobody claimed: kvm_run describes it */
	SHIM_KICKED = 9,      /* shim_kick(); report.value is the signal's number when a signal did it */
	SHIM_TIMEOUT = 10,    /* the deadline passed */
	SHIM_EXIT_LIMIT = 11, /* max_exits were taken */
	SHIM_DEBUG_EXIT = 12, /* the guest wrote report.value to the debug-exit port */
	SHIM_SINK_ERROR = 13, /* writing a sink's bytes failed with -report.value */
	SHIM_ERROR = 14,      /* KVM_RUN failed with -report.value */
	SHIM_CLOSED = 15,     /* the vCPU was closed, by another thread or by a handler */
	SHIM_BUSY = 16,       /* refused: a run is under way; nothing of it was touched */
	SHIM_SYSTEM = 17,     /* the guest ended the machine: report.value is an enum shim_system */
	SHIM_WRITE = 18,      /* a coalesced write nobody claimed: report.*, handler 1 for MMIO */
	SHIM_ROUTING_ERROR = 19, /* KVM_SET_GSI_ROUTING failed with -report.value */
	SHIM_PLACE_ERROR = 20,   /* the thread cannot be put on the vCPU's pCPUs: -report.value */
};
#define SHIM_CONTINUE (-1) /* from a device: handled, go on */

API enum shim_system {
	SHIM_RESET_I8042 = 1,
	SHIM_RESET_CONTROL = 2, /* port 0xcf9, which is ACPI's reset register too */
	SHIM_POWER_OFF_ACPI = 3,
	SHIM_PANICKED = 4,
	SHIM_CRASH_LOADED = 5,
};

API enum shim_owner {
	SHIM_OWNER_DEVICE,
	SHIM_OWNER_COUNTER,
	SHIM_OWNER_RING,
	SHIM_OWNER_PYTHON,
};

/* What a range is a range of. */
API enum shim_space { SHIM_IO, SHIM_MMIO, SHIM_RDMSR, SHIM_WRMSR, SHIM_SPACES };

API enum shim_pending {
	SHIM_PENDING_NONE,     /* registers are architectural */
	SHIM_PENDING_COMPLETE, /* an answered exit: KVM finishes the instruction at the next KVM_RUN */
	SHIM_PENDING_REPLY,    /* a read whose value is still to come */
};

#define SHIM_EXIT_REASONS 64
#define SHIM_PLACE_SIZE 1024 /* bytes: CONFIG_NR_CPUS is 8192 at most */

struct shim_vcpu;

/* ------------------------------------------------------------------ fork.c */

/* Part of what is told of forks. `in_child` runs in the child alone, before fork() returns: locks
 * of the parent's may be held there, by threads that are not there. */
struct shim_at_fork {
	struct shim_at_fork *next, *previous;
	void (*in_child)(struct shim_at_fork *at_fork);
};
#define SHIM_OF_FORK(type, at_fork) ((type *)((char *)(at_fork) - offsetof(type, at_fork)))

void shim_at_fork(struct shim_at_fork *at_fork, void (*in_child)(struct shim_at_fork *at_fork));
void shim_not_at_fork(struct shim_at_fork *at_fork);
int shim_blank(void *address, size_t size);
struct shim_unshared;
API struct shim_unshared *shim_unshare(void *address, size_t size);
API void shim_share(struct shim_unshared *unshared);

/* ------------------------------------------------------------------ dispatch.c */

/* data holds `size` bytes, little endian; a read arrives filled with ones. offset lies in the
 * device's range, offset + size may not: the width is the guest's choice. */
API struct shim_device {
	int (*access)(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
		      uint8_t *data, unsigned size, bool is_write);
	int (*flush)(struct shim_device *device); /* may be NULL; 0 or -errno */
};

API struct shim_counter {
	uint64_t reads, writes;
};

struct shim_range {
	uint64_t first, last; /* inclusive */
	enum shim_owner owner;
	uint32_t handler; /* PYTHON: the caller's index */
	void *object;     /* DEVICE, COUNTER */
};

struct shim_table; /* sorted ranges, immutable once published */

/* One per VM. Readers (vCPU threads) never lock: they say since when they look (shim_bus_look()).
 * Writers copy, publish, and keep the old table until nobody looks who began before. */
struct shim_bus {
	_Atomic(struct shim_table *) tables[SHIM_SPACES];
	_Atomic uint64_t generation; /* of the tables: 1, and one more with each that is published */
	struct shim_table *retired;
	struct shim_vcpu *vcpus; /* all that may look */
	_Atomic bool quiet_msrs; /* denied by the filter and nobody's: #GP, and the guest goes on */
	pthread_mutex_t lock;
	struct shim_at_fork at_fork;
	_Atomic size_t coalesced; /* where a vCPU's mapping has the ring of coalesced writes, 0: off */
	_Atomic int feeder;       /* the thread that hands its records out, 0: none */
	_Atomic(struct shim_ioapic *) ioapic; /* gets the LAPICs' EOIs, NULL: they are exits */
};

API struct shim_bus *shim_bus_new(void);
API void shim_bus_free(struct shim_bus *bus);
API int shim_bus_claim(struct shim_bus *bus, unsigned space, uint64_t first, uint64_t length,
		       int owner, uint32_t handler, void *object);
API void shim_bus_quiet_msrs(struct shim_bus *bus, bool quiet);
API int shim_bus_release(struct shim_bus *bus, unsigned space, uint64_t first);
API uint64_t shim_bus_generation(struct shim_bus *bus);
API void shim_bus_reclaim(struct shim_bus *bus, uint64_t *oldest);
void shim_bus_join(struct shim_bus *bus, struct shim_vcpu *vcpu);
void shim_bus_part(struct shim_bus *bus, struct shim_vcpu *vcpu);
void shim_bus_look(struct shim_vcpu *vcpu);
const struct shim_range *shim_bus_find(struct shim_vcpu *vcpu, unsigned space, uint64_t address);
int shim_bus_flush(struct shim_vcpu *vcpu);
API void shim_bus_set_ioapic(struct shim_bus *bus, struct shim_ioapic *ioapic);

/* ------------------------------------------------------------------ coalesce.c */

#define SHIM_COALESCED_NONE 1

API int shim_bus_coalesce(struct shim_bus *bus, uint64_t page, uint64_t run_size);
int shim_coalesced_begin(struct shim_vcpu *vcpu);
void shim_coalesced_end(struct shim_vcpu *vcpu);
int shim_coalesced_peek(const struct shim_vcpu *vcpu, struct kvm_coalesced_mmio *record);
void shim_coalesced_pop(struct shim_vcpu *vcpu);

/* ------------------------------------------------------------------ sink.c */

/* Bytes on their way out. With a file descriptor they are written at a newline, when the buffer
 * is full, after SHIM_FLUSH_NS at the latest and whenever a run ends; without one they wait for
 * shim_sink_take(). From SHIM_SINK_FULL bytes on it is full; the room above is for what a guest
 * prints while its run is being ended: KVM runs up to 1024 elements of a string I/O instruction, of
 * 4 bytes at most, before it looks at immediate_exit. */
#define SHIM_SINK_SIZE 8448
#define SHIM_SINK_FULL 3840
#define SHIM_FLUSH_NS 10000000

API struct shim_sink {
	struct shim_at_fork at_fork;
	pthread_mutex_t lock;
	int fd; /* -1: memory */
	int error;
	unsigned length;
	uint64_t total;
	int64_t first_at; /* CLOCK_MONOTONIC ns of the first byte */
	uint8_t bytes[SHIM_SINK_SIZE];
};

API struct shim_sink *shim_sink_new(int fd);
API void shim_sink_free(struct shim_sink *sink);
API void shim_sink_redirect(struct shim_sink *sink, int fd);
int shim_sink_put(struct shim_sink *sink, struct shim_vcpu *vcpu, uint8_t byte);
int shim_sink_wait(struct shim_vcpu *vcpu);
API int shim_sink_flush(struct shim_sink *sink);
API unsigned shim_sink_take(struct shim_sink *sink, uint8_t *out, unsigned size);

/* ------------------------------------------------------------------ devices */

#define SHIM_IOAPIC_PINS KVM_IOAPIC_NUM_PINS
#define SHIM_IOAPIC_LENGTH 0x100
struct shim_ioapic;
API struct shim_ioapic *shim_ioapic_new(void);
void shim_ioapic_hold(struct shim_ioapic *ioapic);
API void shim_ioapic_put(struct shim_ioapic *ioapic);
API int shim_ioapic_connect(struct shim_ioapic *ioapic, int vm_fd,
			    const struct kvm_irq_routing *others);
API void shim_ioapic_disconnect(struct shim_ioapic *ioapic);
API int shim_ioapic_set_others(struct shim_ioapic *ioapic, const struct kvm_irq_routing *others);
API int shim_ioapic_resample(struct shim_ioapic *ioapic, unsigned pin, int eventfd);
API void shim_ioapic_set_line(struct shim_ioapic *ioapic, unsigned pin, bool level);
API int shim_ioapic_eoi(struct shim_ioapic *ioapic, struct shim_vcpu *vcpu, uint8_t vector);
API void shim_ioapic_state(struct shim_ioapic *ioapic, struct kvm_ioapic_state *state);
API void shim_ioapic_routes(struct shim_ioapic *ioapic, uint32_t *words);

/* A device's interrupt: a pin of our I/O APIC, an eventfd, a line of the in-kernel irqchip, or
 * nothing. */
struct shim_line {
	int vm_fd;   /* the VM disconnects the device before it closes it; -1 */
	int eventfd; /* a duplicate, ours; -1 */
	struct shim_ioapic *ioapic; /* held; NULL */
	uint32_t gsi;
	bool level;
};
void shim_line_init(struct shim_line *line);
int shim_line_connect(struct shim_line *line, const struct shim_line *to);
void shim_line_disconnect(struct shim_line *line);
void shim_line_drop(struct shim_line *line);
void shim_line_at_fork(struct shim_line *line, pthread_mutex_t *lock);
void shim_line_set(struct shim_line *line, bool level);
void shim_line_assert(struct shim_line *line);

struct shim_uart;
API struct shim_uart *shim_uart_new(struct shim_sink *sink);
API void shim_uart_free(struct shim_uart *uart);
API void shim_uart_connect_line(struct shim_uart *uart, int vm_fd, uint32_t gsi);
API void shim_uart_assert(struct shim_uart *uart);
API int shim_uart_connect_eventfd(struct shim_uart *uart, int eventfd);
API void shim_uart_connect_ioapic(struct shim_uart *uart, struct shim_ioapic *ioapic, uint32_t pin);
API unsigned shim_uart_receive(struct shim_uart *uart, const uint8_t *data, unsigned length,
			       int space_eventfd);
API unsigned shim_uart_backlog(struct shim_uart *uart);

API struct shim_device *shim_debugcon_new(struct shim_sink *sink);
API struct shim_device *shim_debug_exit_new(void);
API struct shim_post {
	struct shim_device device;
	uint64_t writes;
	uint8_t last;
};
API struct shim_post *shim_post_new(void);
API void shim_device_free(struct shim_device *device);

struct shim_i8042;
API struct shim_i8042 *shim_i8042_new(void);
API void shim_i8042_free(struct shim_i8042 *i8042);
API struct shim_device *shim_i8042_data(struct shim_i8042 *i8042);
API struct shim_device *shim_i8042_command(struct shim_i8042 *i8042);

struct shim_pm;
API struct shim_pm *shim_pm_new(void);
API void shim_pm_free(struct shim_pm *pm);
API void shim_pm_connect_line(struct shim_pm *pm, int vm_fd, uint32_t gsi);
API void shim_pm_connect_ioapic(struct shim_pm *pm, struct shim_ioapic *ioapic, uint32_t pin);
API void shim_pm_assert(struct shim_pm *pm);
API bool shim_pm_press_power_button(struct shim_pm *pm);

API struct shim_device *shim_reset_control_new(void);
API struct shim_device *shim_pvpanic_new(void);

struct shim_rtc;
API struct shim_rtc *shim_rtc_new(void);
API void shim_rtc_free(struct shim_rtc *rtc);
API void shim_rtc_set_memory(struct shim_rtc *rtc, uint64_t low, uint64_t high);
API int64_t shim_rtc_offset(struct shim_rtc *rtc);
API int shim_rtc_connect(struct shim_rtc *rtc, int vm_fd, uint32_t gsi, int eventfd);
API int shim_rtc_connect_ioapic(struct shim_rtc *rtc, struct shim_ioapic *ioapic, uint32_t pin);
API void shim_rtc_assert(struct shim_rtc *rtc);
API void shim_rtc_disconnect(struct shim_rtc *rtc);

/* ------------------------------------------------------------------ run.c, vcpu.c */

/* A deferred write, in the order the guest made them. */
API struct shim_record {
	uint64_t address;
	uint64_t value;
	uint64_t size; /* bytes; bits 16-47: the range's handler; bit 63: MMIO */
	uint64_t tsc;
};

/* What the last stop was about. Python reads it as five u64. */
API struct shim_report {
	uint64_t handler;
	uint64_t address;
	uint64_t size;
	uint64_t is_write;
	uint64_t value; /* of a write; of a read: Python puts the answer here */
};

API enum shim_running {
	SHIM_IDLE,
	SHIM_RUNNING, /* a run is under way, in C or in a Python handler */
	SHIM_PARKED,  /* one is under way, and paused */
};

/* What others may look at while the vCPU runs: in the vCPU, or in memory that another process maps
 * (kvmpy/watch/publish.py). Written by the thread that runs the vCPU alone. */
API struct shim_counters {
	uint64_t exits[SHIM_EXIT_REASONS];
	uint64_t handling_ns[SHIM_EXIT_REASONS]; /* from KVM_RUN's return to the next entry */
	uint64_t guest_ns;                       /* inside KVM_RUN */
	uint64_t python_ns;                      /* of handling_ns, outside the shim */
	uint64_t runs;
	uint32_t running; /* enum shim_running */
	int32_t thread;   /* of the last run */
	uint32_t id;      /* KVM's number for the vCPU, if published */
	uint32_t unused[7]; /* no cache line is shared with the next vCPU */
};

/* Such memory: the counters of one machine's vCPUs. */
API struct shim_published {
	uint32_t ended;
	uint32_t unused[15];
	struct shim_counters vcpus[];
};

API struct shim_vcpu {
	int fd;
	struct kvm_run *run;
	size_t run_size;
	struct shim_bus *bus;
	struct shim_vcpu *next_of_bus;
	/* The generation of tables, and of what they point to, that it may be looking at, 0: none.
	 * A claim that Python is told of counts until the guest is entered again. */
	_Atomic uint64_t looking;
	uint64_t ring_looking; /* the same for the oldest record in the ring, if there is one */

	int process; /* that made it */
	struct shim_at_fork at_fork;
	struct shim_unshared *unshared; /* the kvm_run page */
	_Atomic int closed;
	_Atomic int active; /* a run is under way, in C or in a Python handler */
	_Atomic int thread; /* in C with this vCPU, 0: none. Kickers read it. */
	pthread_mutex_t brief; /* held by who has it between runs, or in a pause: for a moment */
	_Atomic int owner;  /* the thread whose run is under way, 0 for a moment at its ends */
	_Atomic int kicked;
	_Atomic int signalled; /* set by our handler, on this thread: number of the signal */

	_Atomic int pauses;    /* asked for and not taken back */
	_Atomic int parked;    /* a run is under way, paused: others may see to the registers */
	_Atomic uint32_t gate; /* a futex: moves when anything happens that a wait could be for */

	_Atomic uint64_t place; /* the number of its place, 0: none was ever given */
	uint64_t places;        /* given so far */
	pthread_mutex_t placing; /* for these and the mask */
	uint8_t mask[SHIM_PLACE_SIZE];

	struct shim_report report;
	int stop;                   /* the last one */
	int flush_error;            /* of the sinks, when the last run ended */
	unsigned element, elements; /* of the exit being dispatched: string I/O has several */

	enum shim_pending pending;
	bool entered;  /* KVM_RUN has succeeded once */
	bool deferred; /* kvm_run holds an exit that is not dispatched yet: it comes first */

	bool feeding;            /* hands out coalesced writes, over its stops too */
	unsigned coalesced_left; /* of those it is to hand out */

	/* the register page: kvm_run's own when KVM has it, else ours */
	struct kvm_sync_regs *regs;
	struct kvm_sync_regs *shadow; /* as KVM gave it: what differs is an edit */
	uint64_t sync_supported; /* of KVM_SYNC_X86_* */
	uint64_t fields;         /* current in *regs */
	uint64_t accessed;       /* touched since the last stop: worth having at the next */
	bool handed_over;        /* to KVM, since Python last had the vCPU */

	/* budgets of the run under way */
	uint64_t exits_left, exits_given;
	int64_t deadline; /* CLOCK_MONOTONIC ns, 0: none */
	int64_t grace;    /* ns that a run takes at least */
	int64_t flush_at; /* a sink holds bytes that must be out by then, 0: none */
	int64_t armed_for;
	timer_t timer;
	uint64_t timer_thread; /* the serial number of the one it signals, 0: no timer yet */
	struct shim_sink *stalled; /* is full: the guest waits for its reader */

	struct shim_record *ring;
	uint64_t ring_size, ring_length;

	struct kvm_dirty_gfn *dirty; /* NULL: not mapped */
	struct shim_unshared *dirty_unshared;
	uint32_t dirty_entries, dirty_next;

	bool timing;
	struct shim_counters *counters, own_counters;
	int64_t returned_at, left_at;
	int64_t first_exit_at; /* CLOCK_MONOTONIC ns, 0: none yet */
	uint32_t returned_with;
	uint64_t entry_tsc, exit_tsc; /* around the last KVM_RUN that was timed */
};

API struct shim_vcpu *shim_vcpu_new(int fd, size_t run_size, struct shim_bus *bus,
				    uint64_t sync_supported, int *error);
API int shim_vcpu_close(struct shim_vcpu *vcpu);
API void shim_vcpu_free(struct shim_vcpu *vcpu);
API int shim_vcpu_ring(struct shim_vcpu *vcpu, uint64_t records);
API int shim_vcpu_count_in(struct shim_vcpu *vcpu, struct shim_counters *counters);

static inline bool shim_wanted_out(const struct shim_vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_SEQ_CST);
}

API int shim_run(struct shim_vcpu *vcpu, int64_t timeout_ns, uint64_t max_exits);
API int shim_resume(struct shim_vcpu *vcpu);
API void shim_finish(struct shim_vcpu *vcpu);
API int shim_sync(struct shim_vcpu *vcpu, uint64_t fields);
API int shim_settle(struct shim_vcpu *vcpu, uint64_t fields);
API int shim_complete(struct shim_vcpu *vcpu);
API int shim_answer(struct shim_vcpu *vcpu, const uint8_t *data, size_t length);

/* ------------------------------------------------------------------ pause.c, place.c */

void shim_move_gate(struct shim_vcpu *vcpu);
int shim_ending(struct shim_vcpu *vcpu);
API void shim_pause(struct shim_vcpu *vcpu);
API unsigned shim_unpause(struct shim_vcpu *const *vcpus, unsigned count);
API int shim_pause_wait(struct shim_vcpu *vcpu, int64_t until, bool in_a_run);
API unsigned shim_pauses(const struct shim_vcpu *vcpu);
int shim_park(struct shim_vcpu *vcpu);
bool shim_await_pause(struct shim_vcpu *vcpu, int64_t until);
API int shim_thread(const struct shim_vcpu *vcpu);
API int shim_place(struct shim_vcpu *vcpu, const uint8_t *mask, unsigned length);
int shim_take_place(struct shim_vcpu *vcpu);
API int shim_set_scheduling(int thread, const int64_t *words);
API int shim_get_scheduling(int thread, int64_t *words);

/* ------------------------------------------------------------------ registers.c */

int shim_hand_over_registers(struct shim_vcpu *vcpu);
void shim_set_untaken_edits(struct shim_vcpu *vcpu, int error);
uint64_t shim_edited(const struct shim_vcpu *vcpu);
void shim_repeat_edits(struct shim_vcpu *vcpu, uint64_t fields, const struct kvm_sync_regs *edited,
		       const struct kvm_sync_regs *before);
void shim_take_registers(struct shim_vcpu *vcpu);
int shim_write_back(struct shim_vcpu *vcpu);
int shim_fetch(struct shim_vcpu *vcpu, uint64_t fields);

/* ------------------------------------------------------------------ dirty.c */

API int shim_dirty_map(struct shim_vcpu *vcpu, uint32_t entries);
int shim_dirty_detach(struct shim_vcpu *vcpu);
void shim_dirty_unmap(struct shim_vcpu *vcpu);
API unsigned shim_dirty_harvest(struct shim_vcpu *vcpu, uint64_t *words, unsigned room);

/* ------------------------------------------------------------------ exits.c */

#define SHIM_DECODE_WORDS 24
API unsigned shim_decode(const struct shim_vcpu *vcpu, uint64_t *words);

/* ------------------------------------------------------------------ replies.c */

enum shim_pending shim_reply_begin(struct kvm_run *run);
API int shim_reply(struct shim_vcpu *vcpu, uint64_t value);
API int shim_refuse(struct shim_vcpu *vcpu);

/* ------------------------------------------------------------------ kick.c */

int shim_kick_init(void);
int shim_kick_thread(void);
API int shim_kick_signal(void);
API void shim_kick(struct shim_vcpu *vcpu);
void shim_get_out(struct shim_vcpu *vcpu);
bool shim_kick_attend(struct shim_vcpu *vcpu);
void shim_kick_ignore(void);
API void shim_name_thread(const char *name);
int shim_kick_enter(struct shim_vcpu *vcpu);
void shim_kick_leave(struct shim_vcpu *vcpu);
int shim_kick_arm(struct shim_vcpu *vcpu);
void shim_kick_forward(void);
void shim_kick_recall(struct shim_vcpu *vcpu);
int64_t shim_now(void);

API int shim_ioctl(int fd, unsigned long request, uintptr_t argument);
API int shim_ioctl_with(int fd, unsigned long request, void *argument);

/* ------------------------------------------------------------------ handout.c */

API struct shim_published *shim_published_map(int fd, size_t size, int *error);
API void shim_published_unmap(struct shim_published *published, size_t size);
struct shim_handout;
API int shim_handout_open(struct shim_handout **handout, const uint8_t *name, size_t name_length,
			  const uint8_t *message, size_t length, const int *fds, unsigned fd_count);
API void shim_handout_close(struct shim_handout *handout);

#endif
