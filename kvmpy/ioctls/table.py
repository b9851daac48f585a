"""Every ioctl that KVM has on x86, one row each: the source of the request constants, of
``ioctls.pyi`` and of the coverage report (``make api-coverage``).

Columns: name; the kinds of descriptor it goes to; which way its structure travels, seen from the
kernel ("in": it reads); the structure (or C type) behind the pointer; the capability that gates
it, without ``KVM_CAP_``; its section in the kernel's KVM API document; the method or property that
makes it. "-" stands for none; "=" in the structure column for a plain integer argument.

No imports here: the build reads this file too.
"""

TABLE = """
KVM_GET_API_VERSION            system         -      -                     -                      4.1    KVM
KVM_CREATE_VM                  system         -      =                     -                      4.2    KVM.create_vm
KVM_GET_MSR_INDEX_LIST         system         inout  kvm_msr_list          -                      4.3    KVM.msr_indices
KVM_GET_MSR_FEATURE_INDEX_LIST system         inout  kvm_msr_list          GET_MSR_FEATURES       4.3    KVM.feature_msr_indices
KVM_CHECK_EXTENSION            system,vm      -      =                     -                      4.4    KVM.check_extension
KVM_GET_VCPU_MMAP_SIZE         system         -      -                     -                      4.5    KVM.vcpu_mmap_size
KVM_GET_SUPPORTED_CPUID        system         inout  kvm_cpuid2            EXT_CPUID              4.46   KVM.supported_cpuid
KVM_GET_EMULATED_CPUID         system         inout  kvm_cpuid2            EXT_EMUL_CPUID         4.88   KVM.emulated_cpuid
KVM_GET_SUPPORTED_HV_CPUID     system,vcpu    inout  kvm_cpuid2            HYPERV_CPUID           4.118  KVM.supported_hyperv_cpuid
KVM_X86_GET_MCE_CAP_SUPPORTED  system         out    uint64_t              MCE                    4.104  KVM.mce_capabilities

KVM_CREATE_VCPU                vm             -      =                     -                      4.7    VM.vcpu
KVM_GET_DIRTY_LOG              vm             in     kvm_dirty_log         -                      4.8    VM.get_dirty_log
KVM_CLEAR_DIRTY_LOG            vm             in     kvm_clear_dirty_log   MANUAL_DIRTY_LOG_PROTECT2 4.117 VM.clear_dirty_log
KVM_RESET_DIRTY_RINGS          vm             -      -                     DIRTY_LOG_RING         8.29   VM.reset_dirty_rings
KVM_SET_NR_MMU_PAGES           vm             -      =                     MMU_SHADOW_CACHE_CONTROL -    VM.nr_mmu_pages
KVM_GET_NR_MMU_PAGES           vm             -      -                     MMU_SHADOW_CACHE_CONTROL -    VM.nr_mmu_pages
KVM_SET_USER_MEMORY_REGION     vm             in     kvm_userspace_memory_region  USER_MEMORY     4.35   VM.set_memory_region
KVM_SET_USER_MEMORY_REGION2    vm             in     kvm_userspace_memory_region2 USER_MEMORY2    4.140  VM.set_memory_region
KVM_SET_MEMORY_ATTRIBUTES      vm             in     kvm_memory_attributes MEMORY_ATTRIBUTES      4.141  VM.set_memory_attributes
KVM_CREATE_GUEST_MEMFD         vm             in     kvm_create_guest_memfd GUEST_MEMFD           4.142  VM.create_guest_memfd
KVM_SET_TSS_ADDR               vm             -      =                     SET_TSS_ADDR           4.36   VM
KVM_SET_IDENTITY_MAP_ADDR      vm             in     uint64_t              SET_IDENTITY_MAP_ADDR  4.40   VM
KVM_SET_BOOT_CPU_ID            vm             -      =                     SET_BOOT_CPU_ID        4.41   VM.set_boot_cpu
KVM_CREATE_IRQCHIP             vm             -      -                     IRQCHIP                4.24   VM.create_irqchip
KVM_IRQ_LINE                   vm             in     kvm_irq_level         IRQCHIP                4.25   VM.irq_line
KVM_IRQ_LINE_STATUS            vm             inout  kvm_irq_level         IRQ_INJECT_STATUS      4.25   VM.irq_line_status
KVM_GET_IRQCHIP                vm             inout  kvm_irqchip           IRQCHIP                4.26   VM.get_irqchip
KVM_SET_IRQCHIP                vm             in     kvm_irqchip           IRQCHIP                4.27   VM.set_irqchip
KVM_SET_GSI_ROUTING            vm             in     kvm_irq_routing       IRQ_ROUTING            4.52   VM.set_gsi_routing
KVM_SIGNAL_MSI                 vm             in     kvm_msi               SIGNAL_MSI             4.71   VM.signal_msi
KVM_IRQFD                      vm             in     kvm_irqfd             IRQFD                  4.75   VM.irqfd
KVM_IOEVENTFD                  vm             in     kvm_ioeventfd         IOEVENTFD              4.59   VM.ioeventfd
KVM_REGISTER_COALESCED_MMIO    vm             in     kvm_coalesced_mmio_zone COALESCED_MMIO       4.116  VM.coalesce
KVM_UNREGISTER_COALESCED_MMIO  vm             in     kvm_coalesced_mmio_zone COALESCED_MMIO       4.116  VM.uncoalesce
KVM_CREATE_PIT                 vm             -      -                     PIT                    -      VM.create_pit
KVM_CREATE_PIT2                vm             in     kvm_pit_config        PIT2                   4.71   VM.create_pit
KVM_GET_PIT                    vm             out    kvm_pit_state         PIT                    -      VM.pit
KVM_SET_PIT                    vm             in     kvm_pit_state         PIT                    -      VM.pit
KVM_GET_PIT2                   vm             out    kvm_pit_state2        PIT_STATE2             4.72   VM.pit
KVM_SET_PIT2                   vm             in     kvm_pit_state2        PIT_STATE2             4.73   VM.pit
KVM_REINJECT_CONTROL           vm             in     kvm_reinject_control  REINJECT_CONTROL       4.99   VM.reinject_pit
KVM_GET_CLOCK                  vm             out    kvm_clock_data        ADJUST_CLOCK           4.29   VM.clock
KVM_SET_CLOCK                  vm             in     kvm_clock_data        ADJUST_CLOCK           4.30   VM.clock
KVM_SET_TSC_KHZ                vcpu,vm        -      =                     TSC_CONTROL            4.55   VCPU.tsc_khz
KVM_GET_TSC_KHZ                vcpu,vm        -      -                     GET_TSC_KHZ            4.56   VCPU.tsc_khz
KVM_X86_SET_MSR_FILTER         vm             in     kvm_msr_filter        X86_MSR_FILTER         4.97   VM.set_msr_filter
KVM_SET_PMU_EVENT_FILTER       vm             in     kvm_pmu_event_filter  PMU_EVENT_FILTER       4.120  VM.set_pmu_event_filter
KVM_CREATE_DEVICE              vm             inout  kvm_create_device     DEVICE_CTRL            4.79   VM.create_device
KVM_SET_DEVICE_ATTR            device,vm,vcpu in     kvm_device_attr       DEVICE_CTRL            4.80   Attributes.set
KVM_GET_DEVICE_ATTR            device,vm,vcpu,system inout kvm_device_attr DEVICE_CTRL            4.80   Attributes.get
KVM_HAS_DEVICE_ATTR            device,vm,vcpu,system in kvm_device_attr    DEVICE_CTRL            4.81   Attributes.has
KVM_ENABLE_CAP                 vm,vcpu        in     kvm_enable_cap        ENABLE_CAP             4.37   VM.enable_capability
KVM_GET_STATS_FD               vm,vcpu        -      -                     BINARY_STATS_FD        4.133  VM.stats
KVM_MEMORY_ENCRYPT_OP          vm             inout  uint64_t              -                      4.110  VM.sev.op
KVM_MEMORY_ENCRYPT_REG_REGION  vm             in     kvm_enc_region        -                      4.111  VM.sev.register_region
KVM_MEMORY_ENCRYPT_UNREG_REGION vm            in     kvm_enc_region        -                      4.112  VM.sev.unregister_region
KVM_HYPERV_EVENTFD             vm             in     kvm_hyperv_eventfd    HYPERV_EVENTFD         4.113  VM.hyperv.eventfd
KVM_XEN_HVM_CONFIG             vm             in     kvm_xen_hvm_config    XEN_HVM                4.28   VM.xen.configure
KVM_XEN_HVM_GET_ATTR           vm             inout  kvm_xen_hvm_attr      XEN_HVM                4.127  VM.xen.get
KVM_XEN_HVM_SET_ATTR           vm             in     kvm_xen_hvm_attr      XEN_HVM                4.126  VM.xen.set
KVM_XEN_HVM_EVTCHN_SEND        vm             in     kvm_irq_routing_xen_evtchn XEN_HVM           4.135  VM.xen.send_event

KVM_RUN                        vcpu           -      -                     -                      4.10   VCPU.run
KVM_GET_REGS                   vcpu           out    kvm_regs              -                      4.11   VCPU.regs
KVM_SET_REGS                   vcpu           in     kvm_regs              -                      4.12   VCPU.regs
KVM_GET_SREGS                  vcpu           out    kvm_sregs             -                      4.13   VCPU.sregs
KVM_SET_SREGS                  vcpu           in     kvm_sregs             -                      4.14   VCPU.sregs
KVM_GET_SREGS2                 vcpu           out    kvm_sregs2            SREGS2                 4.131  VCPU.sregs2
KVM_SET_SREGS2                 vcpu           in     kvm_sregs2            SREGS2                 4.132  VCPU.sregs2
KVM_TRANSLATE                  vcpu           inout  kvm_translation       -                      4.15   VCPU.translate
KVM_INTERRUPT                  vcpu           in     kvm_interrupt         -                      4.16   VCPU.interrupt
KVM_NMI                        vcpu           -      -                     USER_NMI               4.64   VCPU.nmi
KVM_SMI                        vcpu           -      -                     X86_SMM                4.96   VCPU.smi
KVM_GET_MSRS                   vcpu,system    inout  kvm_msrs              -                      4.18   VCPU.msrs
KVM_SET_MSRS                   vcpu           in     kvm_msrs              -                      4.19   VCPU.msrs
KVM_SET_CPUID                  vcpu           in     kvm_cpuid             -                      4.20   VCPU.set_cpuid1
KVM_SET_CPUID2                 vcpu           in     kvm_cpuid2            EXT_CPUID              4.20   VCPU.set_cpuid
KVM_GET_CPUID2                 vcpu           inout  kvm_cpuid2            EXT_CPUID              4.20   VCPU.get_cpuid
KVM_SET_SIGNAL_MASK            vcpu           in     kvm_signal_mask       -                      4.21   VCPU.set_signal_mask
KVM_GET_FPU                    vcpu           out    kvm_fpu               -                      4.22   VCPU.fpu
KVM_SET_FPU                    vcpu           in     kvm_fpu               -                      4.23   VCPU.fpu
KVM_GET_XSAVE                  vcpu           out    kvm_xsave             XSAVE                  4.42   VCPU.xsave
KVM_GET_XSAVE2                 vcpu           out    kvm_xsave             XSAVE2                 4.134  VCPU.xsave
KVM_SET_XSAVE                  vcpu           in     kvm_xsave             XSAVE                  4.43   VCPU.xsave
KVM_GET_XCRS                   vcpu           out    kvm_xcrs              XCRS                   4.44   VCPU.xcrs
KVM_SET_XCRS                   vcpu           in     kvm_xcrs              XCRS                   4.45   VCPU.xcrs
KVM_GET_DEBUGREGS              vcpu           out    kvm_debugregs         DEBUGREGS              4.33   VCPU.debugregs
KVM_SET_DEBUGREGS              vcpu           in     kvm_debugregs         DEBUGREGS              4.34   VCPU.debugregs
KVM_GET_VCPU_EVENTS            vcpu           out    kvm_vcpu_events       VCPU_EVENTS            4.31   VCPU.events
KVM_SET_VCPU_EVENTS            vcpu           in     kvm_vcpu_events       VCPU_EVENTS            4.32   VCPU.events
KVM_GET_MP_STATE               vcpu           out    kvm_mp_state          MP_STATE               4.38   VCPU.mp_state
KVM_SET_MP_STATE               vcpu           in     kvm_mp_state          MP_STATE               4.39   VCPU.mp_state
KVM_GET_LAPIC                  vcpu           out    kvm_lapic_state       IRQCHIP                4.57   VCPU.lapic
KVM_SET_LAPIC                  vcpu           in     kvm_lapic_state       IRQCHIP                4.58   VCPU.lapic
KVM_TPR_ACCESS_REPORTING       vcpu           inout  kvm_tpr_access_ctl    VAPIC                  -      VCPU.report_tpr_access
KVM_SET_VAPIC_ADDR             vcpu           in     kvm_vapic_addr        VAPIC                  -      VCPU.set_vapic_address
KVM_GET_NESTED_STATE           vcpu           inout  kvm_nested_state      NESTED_STATE           4.114  VCPU.nested_state
KVM_SET_NESTED_STATE           vcpu           in     kvm_nested_state      NESTED_STATE           4.115  VCPU.nested_state
KVM_SET_GUEST_DEBUG            vcpu           in     kvm_guest_debug       SET_GUEST_DEBUG        4.87   VCPU.set_guest_debug
KVM_X86_SETUP_MCE              vcpu           in     uint64_t              MCE                    4.105  VCPU.mce.setup
KVM_X86_SET_MCE                vcpu           in     kvm_x86_mce           MCE                    4.106  VCPU.mce.inject
KVM_KVMCLOCK_CTRL              vcpu           -      -                     KVMCLOCK_CTRL          4.70   VCPU.kvmclock_ctrl
KVM_PRE_FAULT_MEMORY           vcpu           inout  kvm_pre_fault_memory  PRE_FAULT_MEMORY       4.143  VCPU.pre_fault_memory
KVM_GET_ONE_REG                vcpu           in     kvm_one_reg           ONE_REG                4.69   VCPU.get_one_reg
KVM_SET_ONE_REG                vcpu           in     kvm_one_reg           ONE_REG                4.68   VCPU.set_one_reg
KVM_GET_REG_LIST               vcpu           inout  kvm_reg_list          ONE_REG                4.84   VCPU.one_reg_list
KVM_XEN_VCPU_GET_ATTR          vcpu           inout  kvm_xen_vcpu_attr     XEN_HVM                4.129  VCPU.xen.get
KVM_XEN_VCPU_SET_ATTR          vcpu           in     kvm_xen_vcpu_attr     XEN_HVM                4.128  VCPU.xen.set
"""  # noqa: E501
