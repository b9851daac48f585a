/* What Python sees of the shim. Read by cffi, not by the compiler. */

#define SHIM_ACCESS ...
#define SHIM_RING ...
#define SHIM_DRAIN ...
#define SHIM_SIGNAL ...
#define SHIM_MSR ...
#define SHIM_PAUSED ...
#define SHIM_IO ...
#define SHIM_MMIO ...
#define SHIM_RDMSR ...
#define SHIM_WRMSR ...
#define SHIM_EXIT ...
#define SHIM_KICKED ...
#define SHIM_TIMEOUT ...
#define SHIM_EXIT_LIMIT ...
#define SHIM_DEBUG_EXIT ...
#define SHIM_SINK_ERROR ...
#define SHIM_ERROR ...
#define SHIM_CLOSED ...
#define SHIM_BUSY ...
#define SHIM_SYSTEM ...
#define SHIM_RESET_I8042 ...
#define SHIM_RESET_CONTROL ...
#define SHIM_POWER_OFF_ACPI ...
#define SHIM_PANICKED ...
#define SHIM_CRASH_LOADED ...
#define SHIM_WRITE ...
#define SHIM_ROUTING_ERROR ...
#define SHIM_PLACE_ERROR ...
#define SHIM_OWNER_DEVICE ...
#define SHIM_OWNER_COUNTER ...
#define SHIM_OWNER_RING ...
#define SHIM_OWNER_PYTHON ...
#define SHIM_EXIT_REASONS ...
#define SHIM_SINK_SIZE ...
#define SHIM_DECODE_WORDS ...

struct shim_bus;
struct shim_bus *shim_bus_new(void);
void shim_bus_free(struct shim_bus *bus);
int shim_bus_claim(struct shim_bus *bus, unsigned space, uint64_t first, uint64_t length, int owner,
                   uint32_t handler, void *object);
void shim_bus_quiet_msrs(struct shim_bus *bus, bool quiet);
int shim_bus_release(struct shim_bus *bus, unsigned space, uint64_t first);
int shim_bus_coalesce(struct shim_bus *bus, uint64_t page, uint64_t run_size);

#define SHIM_IOAPIC_PINS ...
#define SHIM_IOAPIC_LENGTH ...
struct shim_ioapic;
void shim_bus_set_ioapic(struct shim_bus *bus, struct shim_ioapic *ioapic);
struct shim_ioapic *shim_ioapic_new(void);
void shim_ioapic_put(struct shim_ioapic *ioapic);
int shim_ioapic_connect(struct shim_ioapic *ioapic, int vm_fd,
                        const struct kvm_irq_routing *others);
void shim_ioapic_disconnect(struct shim_ioapic *ioapic);
int shim_ioapic_set_others(struct shim_ioapic *ioapic, const struct kvm_irq_routing *others);
int shim_ioapic_resample(struct shim_ioapic *ioapic, unsigned pin, int eventfd);
void shim_ioapic_set_line(struct shim_ioapic *ioapic, unsigned pin, bool level);
void shim_ioapic_state(struct shim_ioapic *ioapic, struct kvm_ioapic_state *state);
void shim_ioapic_routes(struct shim_ioapic *ioapic, uint32_t *words);

struct shim_counter { uint64_t reads, writes; };

struct shim_sink { int fd; int error; unsigned length; uint64_t total; int64_t first_at; ...; };
struct shim_sink *shim_sink_new(int fd);
void shim_sink_free(struct shim_sink *sink);
void shim_sink_redirect(struct shim_sink *sink, int fd);
int shim_sink_flush(struct shim_sink *sink);
unsigned shim_sink_take(struct shim_sink *sink, uint8_t *out, unsigned size);

struct shim_uart;
struct shim_uart *shim_uart_new(struct shim_sink *sink);
void shim_uart_free(struct shim_uart *uart);
void shim_uart_connect_line(struct shim_uart *uart, int vm_fd, uint32_t gsi);
void shim_uart_connect_eventfd(struct shim_uart *uart, int eventfd);
void shim_uart_connect_ioapic(struct shim_uart *uart, struct shim_ioapic *ioapic, uint32_t pin);
unsigned shim_uart_receive(struct shim_uart *uart, const uint8_t *data, unsigned length,
                           int space_eventfd);
unsigned shim_uart_backlog(struct shim_uart *uart);

struct shim_vcpu;
struct shim_device {
    int (*access)(struct shim_device *device, struct shim_vcpu *vcpu, uint64_t offset,
                  uint8_t *data, unsigned size, bool is_write);
    ...;
};
struct shim_device *shim_debugcon_new(struct shim_sink *sink);
struct shim_device *shim_debug_exit_new(void);
struct shim_post { uint64_t writes; uint8_t last; ...; };
struct shim_post *shim_post_new(void);
void shim_device_free(struct shim_device *device);

/* virtio.h */
#define VIRTIO_MMIO_LENGTH ...
#define SHIM_VIRTIO_STATISTICS ...
struct virtio_region { uint64_t gpa, size; uint8_t *hva; bool read_only; ...; };
struct virtio_device { struct shim_device device; ...; };
struct virtio_device *shim_virtio_rng_new(void);
struct virtio_device *shim_virtio_blk_new(int fd, uint64_t sectors, bool read_only,
                                          const char *serial);
struct virtio_device *shim_virtio_net_new(int fd, const uint8_t *mac);
struct virtio_device *shim_virtio_console_new(int fd, uint64_t keep, uint16_t columns,
                                              uint16_t rows);
unsigned shim_virtio_console_receive(struct virtio_device *device, const uint8_t *data,
                                     unsigned length, int space_eventfd);
unsigned shim_virtio_console_backlog(struct virtio_device *device);
void shim_virtio_console_redirect(struct virtio_device *device, int fd, uint64_t keep);
int shim_virtio_console_flush(struct virtio_device *device, int64_t timeout_ns);
void shim_virtio_console_resize(struct virtio_device *device, uint16_t columns, uint16_t rows);
int shim_virtio_start(struct virtio_device *device, const struct virtio_region *regions,
                      unsigned count);
int shim_virtio_set_memory(struct virtio_device *device, const struct virtio_region *regions,
                           unsigned count);
void shim_virtio_stop(struct virtio_device *device);
void shim_virtio_close(struct virtio_device *device);
void shim_virtio_free(struct virtio_device *device);
const char *shim_virtio_fault(struct virtio_device *device, unsigned *queue);
int shim_virtio_queue_fd(const struct virtio_device *device, unsigned queue);
int shim_virtio_interrupt_fd(const struct virtio_device *device);
unsigned shim_virtio_queues(const struct virtio_device *device);
void shim_virtio_statistics(const struct virtio_device *device, uint64_t *words);

struct shim_i8042;
struct shim_i8042 *shim_i8042_new(void);
void shim_i8042_free(struct shim_i8042 *i8042);
struct shim_device *shim_i8042_data(struct shim_i8042 *i8042);
struct shim_device *shim_i8042_command(struct shim_i8042 *i8042);

struct shim_pm;
struct shim_pm *shim_pm_new(void);
void shim_pm_free(struct shim_pm *pm);
void shim_pm_connect_line(struct shim_pm *pm, int vm_fd, uint32_t gsi);
void shim_pm_connect_ioapic(struct shim_pm *pm, struct shim_ioapic *ioapic, uint32_t pin);
bool shim_pm_press_power_button(struct shim_pm *pm);

struct shim_device *shim_reset_control_new(void);
struct shim_device *shim_pvpanic_new(void);

struct shim_rtc;
struct shim_rtc *shim_rtc_new(void);
void shim_rtc_free(struct shim_rtc *rtc);
void shim_rtc_set_memory(struct shim_rtc *rtc, uint64_t low, uint64_t high);
int64_t shim_rtc_offset(struct shim_rtc *rtc);
int shim_rtc_connect(struct shim_rtc *rtc, int vm_fd, uint32_t gsi, int eventfd);
int shim_rtc_connect_ioapic(struct shim_rtc *rtc, struct shim_ioapic *ioapic, uint32_t pin);
void shim_rtc_disconnect(struct shim_rtc *rtc);

struct shim_record { uint64_t address, value, size, tsc; };
struct shim_report { uint64_t handler, address, size, is_write, value; };
#define SHIM_PARKED ...
struct shim_counters {
    uint64_t exits[...];
    uint64_t handling_ns[...];
    uint64_t guest_ns, python_ns, runs;
    uint32_t running;
    int32_t thread;
    uint32_t id;
    ...;
};
struct shim_published { uint32_t ended; ...; };
struct shim_vcpu {
    int fd;
    struct kvm_run *run;
    size_t run_size;
    struct shim_report report;
    int stop;
    int pending;
    int flush_error;
    bool deferred;
    struct kvm_sync_regs *regs;
    uint64_t sync_supported, fields, accessed;
    uint64_t exits_left;
    struct shim_record *ring;
    uint64_t ring_size, ring_length;
    bool timing;
    struct shim_counters *counters;
    int64_t returned_at, left_at;
    int64_t first_exit_at;
    uint64_t entry_tsc, exit_tsc;
    ...;
};
struct shim_vcpu *shim_vcpu_new(int fd, size_t run_size, struct shim_bus *bus,
                                uint64_t sync_supported, int *error);
int shim_vcpu_close(struct shim_vcpu *vcpu);
void shim_vcpu_free(struct shim_vcpu *vcpu);
int shim_vcpu_ring(struct shim_vcpu *vcpu, uint64_t records);
int shim_vcpu_count_in(struct shim_vcpu *vcpu, struct shim_counters *counters);
int shim_dirty_map(struct shim_vcpu *vcpu, uint32_t entries);
unsigned shim_dirty_harvest(struct shim_vcpu *vcpu, uint64_t *words, unsigned room);
int shim_run(struct shim_vcpu *vcpu, int64_t timeout_ns, uint64_t max_exits);
int shim_resume(struct shim_vcpu *vcpu);
void shim_finish(struct shim_vcpu *vcpu);
int shim_sync(struct shim_vcpu *vcpu, uint64_t fields);
int shim_settle(struct shim_vcpu *vcpu, uint64_t fields);
int shim_complete(struct shim_vcpu *vcpu);
int shim_answer(struct shim_vcpu *vcpu, const uint8_t *data, size_t length);
int shim_ioapic_eoi(struct shim_ioapic *ioapic, struct shim_vcpu *vcpu, uint8_t vector);
int shim_reply(struct shim_vcpu *vcpu, uint64_t value);
int shim_refuse(struct shim_vcpu *vcpu);
unsigned shim_decode(const struct shim_vcpu *vcpu, uint64_t *words);
void shim_kick(struct shim_vcpu *vcpu);
int shim_kick_signal(void);
void shim_pause(struct shim_vcpu *vcpu);
unsigned shim_unpause(struct shim_vcpu *const *vcpus, unsigned count);
int shim_pause_wait(struct shim_vcpu *vcpu, int64_t until, bool in_a_run);
unsigned shim_pauses(const struct shim_vcpu *vcpu);
int shim_thread(const struct shim_vcpu *vcpu);
int shim_place(struct shim_vcpu *vcpu, const uint8_t *mask, unsigned length);
int shim_set_scheduling(int thread, const int64_t *words);
int shim_get_scheduling(int thread, int64_t *words);
void shim_name_thread(const char *name);
int shim_ioctl(int fd, unsigned long request, uintptr_t argument);
int shim_ioctl_with(int fd, unsigned long request, void *argument);
struct shim_published *shim_published_map(int fd, size_t size, int *error);
void shim_published_unmap(struct shim_published *published, size_t size);
struct shim_handout;
int shim_handout_open(struct shim_handout **handout, const uint8_t *name, size_t name_length,
                      const uint8_t *message, size_t length, const int *fds, unsigned fd_count);
void shim_handout_close(struct shim_handout *handout);
void shim_cpuid(uint32_t function, uint32_t index, uint32_t *registers);
uint64_t shim_tsc(void);
void shim_spin(uint32_t rounds);
void shim_host_calls(int64_t number, uint32_t records, uint32_t *ticks);
uint32_t shim_spin_ticks(uint32_t rounds);
int shim_count_guest(uint32_t type, uint64_t config);

struct shim_host_try {
	int32_t signal;
	bool reported;
	uint32_t vector, error_code;
	uint64_t address, rax, rdx;
	...;
};
int shim_host_try(const void *code, uint32_t size, uint32_t entry, uint64_t operand,
		  const void *scratch, uint32_t scratch_size, struct shim_host_try *result);
