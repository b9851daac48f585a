"""Every KVM ioctl of x86 by name. Made by native/ioctls_stub.py: do not edit."""

from .ioctl import Ioctl as Ioctl, lacks as lacks

ALL: dict[str, Ioctl]

KVM_GET_API_VERSION: Ioctl
"""On a system descriptor; nothing.

Capability: none. KVM API: 4.1. Method: KVM.
"""

KVM_CREATE_VM: Ioctl
"""On a system descriptor; an integer.

Capability: none. KVM API: 4.2. Method: KVM.create_vm.
"""

KVM_GET_MSR_INDEX_LIST: Ioctl
"""On a system descriptor; inout struct kvm_msr_list.

Capability: none. KVM API: 4.3. Method: KVM.msr_indices.
"""

KVM_GET_MSR_FEATURE_INDEX_LIST: Ioctl
"""On a system descriptor; inout struct kvm_msr_list.

Capability: KVM_CAP_GET_MSR_FEATURES. KVM API: 4.3. Method: KVM.feature_msr_indices.
"""

KVM_CHECK_EXTENSION: Ioctl
"""On a system or vm descriptor; an integer.

Capability: none. KVM API: 4.4. Method: KVM.check_extension.
"""

KVM_GET_VCPU_MMAP_SIZE: Ioctl
"""On a system descriptor; nothing.

Capability: none. KVM API: 4.5. Method: KVM.vcpu_mmap_size.
"""

KVM_GET_SUPPORTED_CPUID: Ioctl
"""On a system descriptor; inout struct kvm_cpuid2.

Capability: KVM_CAP_EXT_CPUID. KVM API: 4.46. Method: KVM.supported_cpuid.
"""

KVM_GET_EMULATED_CPUID: Ioctl
"""On a system descriptor; inout struct kvm_cpuid2.

Capability: KVM_CAP_EXT_EMUL_CPUID. KVM API: 4.88. Method: KVM.emulated_cpuid.
"""

KVM_GET_SUPPORTED_HV_CPUID: Ioctl
"""On a system or vcpu descriptor; inout struct kvm_cpuid2.

Capability: KVM_CAP_HYPERV_CPUID. KVM API: 4.118. Method: KVM.supported_hyperv_cpuid.
"""

KVM_X86_GET_MCE_CAP_SUPPORTED: Ioctl
"""On a system descriptor; out uint64_t.

Capability: KVM_CAP_MCE. KVM API: 4.104. Method: KVM.mce_capabilities.
"""

KVM_CREATE_VCPU: Ioctl
"""On a vm descriptor; an integer.

Capability: none. KVM API: 4.7. Method: VM.vcpu.
"""

KVM_GET_DIRTY_LOG: Ioctl
"""On a vm descriptor; in struct kvm_dirty_log.

Capability: none. KVM API: 4.8. Method: VM.get_dirty_log.
"""

KVM_CLEAR_DIRTY_LOG: Ioctl
"""On a vm descriptor; in struct kvm_clear_dirty_log.

Capability: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. KVM API: 4.117. Method: VM.clear_dirty_log.
"""

KVM_RESET_DIRTY_RINGS: Ioctl
"""On a vm descriptor; nothing.

Capability: KVM_CAP_DIRTY_LOG_RING. KVM API: 8.29. Method: VM.reset_dirty_rings.
"""

KVM_SET_NR_MMU_PAGES: Ioctl
"""On a vm descriptor; an integer.

Capability: KVM_CAP_MMU_SHADOW_CACHE_CONTROL. KVM API: no section. Method: VM.nr_mmu_pages.
"""

KVM_GET_NR_MMU_PAGES: Ioctl
"""On a vm descriptor; nothing.

Capability: KVM_CAP_MMU_SHADOW_CACHE_CONTROL. KVM API: no section. Method: VM.nr_mmu_pages.
"""

KVM_SET_USER_MEMORY_REGION: Ioctl
"""On a vm descriptor; in struct kvm_userspace_memory_region.

Capability: KVM_CAP_USER_MEMORY. KVM API: 4.35. Method: VM.set_memory_region.
"""

KVM_SET_USER_MEMORY_REGION2: Ioctl
"""On a vm descriptor; in struct kvm_userspace_memory_region2.

Capability: KVM_CAP_USER_MEMORY2. KVM API: 4.140. Method: VM.set_memory_region.
"""

KVM_SET_MEMORY_ATTRIBUTES: Ioctl
"""On a vm descriptor; in struct kvm_memory_attributes.

Capability: KVM_CAP_MEMORY_ATTRIBUTES. KVM API: 4.141. Method: VM.set_memory_attributes.
"""

KVM_CREATE_GUEST_MEMFD: Ioctl
"""On a vm descriptor; in struct kvm_create_guest_memfd.

Capability: KVM_CAP_GUEST_MEMFD. KVM API: 4.142. Method: VM.create_guest_memfd.
"""

KVM_SET_TSS_ADDR: Ioctl
"""On a vm descriptor; an integer.

Capability: KVM_CAP_SET_TSS_ADDR. KVM API: 4.36. Method: VM.
"""

KVM_SET_IDENTITY_MAP_ADDR: Ioctl
"""On a vm descriptor; in uint64_t.

Capability: KVM_CAP_SET_IDENTITY_MAP_ADDR. KVM API: 4.40. Method: VM.
"""

KVM_SET_BOOT_CPU_ID: Ioctl
"""On a vm descriptor; an integer.

Capability: KVM_CAP_SET_BOOT_CPU_ID. KVM API: 4.41. Method: VM.set_boot_cpu.
"""

KVM_CREATE_IRQCHIP: Ioctl
"""On a vm descriptor; nothing.

Capability: KVM_CAP_IRQCHIP. KVM API: 4.24. Method: VM.create_irqchip.
"""

KVM_IRQ_LINE: Ioctl
"""On a vm descriptor; in struct kvm_irq_level.

Capability: KVM_CAP_IRQCHIP. KVM API: 4.25. Method: VM.irq_line.
"""

KVM_IRQ_LINE_STATUS: Ioctl
"""On a vm descriptor; inout struct kvm_irq_level.

Capability: KVM_CAP_IRQ_INJECT_STATUS. KVM API: 4.25. Method: VM.irq_line_status.
"""

KVM_GET_IRQCHIP: Ioctl
"""On a vm descriptor; inout struct kvm_irqchip.

Capability: KVM_CAP_IRQCHIP. KVM API: 4.26. Method: VM.get_irqchip.
"""

KVM_SET_IRQCHIP: Ioctl
"""On a vm descriptor; in struct kvm_irqchip.

Capability: KVM_CAP_IRQCHIP. KVM API: 4.27. Method: VM.set_irqchip.
"""

KVM_SET_GSI_ROUTING: Ioctl
"""On a vm descriptor; in struct kvm_irq_routing.

Capability: KVM_CAP_IRQ_ROUTING. KVM API: 4.52. Method: VM.set_gsi_routing.
"""

KVM_SIGNAL_MSI: Ioctl
"""On a vm descriptor; in struct kvm_msi.

Capability: KVM_CAP_SIGNAL_MSI. KVM API: 4.71. Method: VM.signal_msi.
"""

KVM_IRQFD: Ioctl
"""On a vm descriptor; in struct kvm_irqfd.

Capability: KVM_CAP_IRQFD. KVM API: 4.75. Method: VM.irqfd.
"""

KVM_IOEVENTFD: Ioctl
"""On a vm descriptor; in struct kvm_ioeventfd.

Capability: KVM_CAP_IOEVENTFD. KVM API: 4.59. Method: VM.ioeventfd.
"""

KVM_REGISTER_COALESCED_MMIO: Ioctl
"""On a vm descriptor; in struct kvm_coalesced_mmio_zone.

Capability: KVM_CAP_COALESCED_MMIO. KVM API: 4.116. Method: VM.coalesce.
"""

KVM_UNREGISTER_COALESCED_MMIO: Ioctl
"""On a vm descriptor; in struct kvm_coalesced_mmio_zone.

Capability: KVM_CAP_COALESCED_MMIO. KVM API: 4.116. Method: VM.uncoalesce.
"""

KVM_CREATE_PIT: Ioctl
"""On a vm descriptor; nothing.

Capability: KVM_CAP_PIT. KVM API: no section. Method: VM.create_pit.
"""

KVM_CREATE_PIT2: Ioctl
"""On a vm descriptor; in struct kvm_pit_config.

Capability: KVM_CAP_PIT2. KVM API: 4.71. Method: VM.create_pit.
"""

KVM_GET_PIT: Ioctl
"""On a vm descriptor; out struct kvm_pit_state.

Capability: KVM_CAP_PIT. KVM API: no section. Method: VM.pit.
"""

KVM_SET_PIT: Ioctl
"""On a vm descriptor; in struct kvm_pit_state.

Capability: KVM_CAP_PIT. KVM API: no section. Method: VM.pit.
"""

KVM_GET_PIT2: Ioctl
"""On a vm descriptor; out struct kvm_pit_state2.

Capability: KVM_CAP_PIT_STATE2. KVM API: 4.72. Method: VM.pit.
"""

KVM_SET_PIT2: Ioctl
"""On a vm descriptor; in struct kvm_pit_state2.

Capability: KVM_CAP_PIT_STATE2. KVM API: 4.73. Method: VM.pit.
"""

KVM_REINJECT_CONTROL: Ioctl
"""On a vm descriptor; in struct kvm_reinject_control.

Capability: KVM_CAP_REINJECT_CONTROL. KVM API: 4.99. Method: VM.reinject_pit.
"""

KVM_GET_CLOCK: Ioctl
"""On a vm descriptor; out struct kvm_clock_data.

Capability: KVM_CAP_ADJUST_CLOCK. KVM API: 4.29. Method: VM.clock.
"""

KVM_SET_CLOCK: Ioctl
"""On a vm descriptor; in struct kvm_clock_data.

Capability: KVM_CAP_ADJUST_CLOCK. KVM API: 4.30. Method: VM.clock.
"""

KVM_SET_TSC_KHZ: Ioctl
"""On a vcpu or vm descriptor; an integer.

Capability: KVM_CAP_TSC_CONTROL. KVM API: 4.55. Method: VCPU.tsc_khz.
"""

KVM_GET_TSC_KHZ: Ioctl
"""On a vcpu or vm descriptor; nothing.

Capability: KVM_CAP_GET_TSC_KHZ. KVM API: 4.56. Method: VCPU.tsc_khz.
"""

KVM_X86_SET_MSR_FILTER: Ioctl
"""On a vm descriptor; in struct kvm_msr_filter.

Capability: KVM_CAP_X86_MSR_FILTER. KVM API: 4.97. Method: VM.set_msr_filter.
"""

KVM_SET_PMU_EVENT_FILTER: Ioctl
"""On a vm descriptor; in struct kvm_pmu_event_filter.

Capability: KVM_CAP_PMU_EVENT_FILTER. KVM API: 4.120. Method: VM.set_pmu_event_filter.
"""

KVM_CREATE_DEVICE: Ioctl
"""On a vm descriptor; inout struct kvm_create_device.

Capability: KVM_CAP_DEVICE_CTRL. KVM API: 4.79. Method: VM.create_device.
"""

KVM_SET_DEVICE_ATTR: Ioctl
"""On a device or vm or vcpu descriptor; in struct kvm_device_attr.

Capability: KVM_CAP_DEVICE_CTRL. KVM API: 4.80. Method: Attributes.set.
"""

KVM_GET_DEVICE_ATTR: Ioctl
"""On a device or vm or vcpu or system descriptor; inout struct kvm_device_attr.

Capability: KVM_CAP_DEVICE_CTRL. KVM API: 4.80. Method: Attributes.get.
"""

KVM_HAS_DEVICE_ATTR: Ioctl
"""On a device or vm or vcpu or system descriptor; in struct kvm_device_attr.

Capability: KVM_CAP_DEVICE_CTRL. KVM API: 4.81. Method: Attributes.has.
"""

KVM_ENABLE_CAP: Ioctl
"""On a vm or vcpu descriptor; in struct kvm_enable_cap.

Capability: KVM_CAP_ENABLE_CAP. KVM API: 4.37. Method: VM.enable_capability.
"""

KVM_GET_STATS_FD: Ioctl
"""On a vm or vcpu descriptor; nothing.

Capability: KVM_CAP_BINARY_STATS_FD. KVM API: 4.133. Method: VM.stats.
"""

KVM_MEMORY_ENCRYPT_OP: Ioctl
"""On a vm descriptor; inout uint64_t.

Capability: none. KVM API: 4.110. Method: VM.sev.op.
"""

KVM_MEMORY_ENCRYPT_REG_REGION: Ioctl
"""On a vm descriptor; in struct kvm_enc_region.

Capability: none. KVM API: 4.111. Method: VM.sev.register_region.
"""

KVM_MEMORY_ENCRYPT_UNREG_REGION: Ioctl
"""On a vm descriptor; in struct kvm_enc_region.

Capability: none. KVM API: 4.112. Method: VM.sev.unregister_region.
"""

KVM_HYPERV_EVENTFD: Ioctl
"""On a vm descriptor; in struct kvm_hyperv_eventfd.

Capability: KVM_CAP_HYPERV_EVENTFD. KVM API: 4.113. Method: VM.hyperv.eventfd.
"""

KVM_XEN_HVM_CONFIG: Ioctl
"""On a vm descriptor; in struct kvm_xen_hvm_config.

Capability: KVM_CAP_XEN_HVM. KVM API: 4.28. Method: VM.xen.configure.
"""

KVM_XEN_HVM_GET_ATTR: Ioctl
"""On a vm descriptor; inout struct kvm_xen_hvm_attr.

Capability: KVM_CAP_XEN_HVM. KVM API: 4.127. Method: VM.xen.get.
"""

KVM_XEN_HVM_SET_ATTR: Ioctl
"""On a vm descriptor; in struct kvm_xen_hvm_attr.

Capability: KVM_CAP_XEN_HVM. KVM API: 4.126. Method: VM.xen.set.
"""

KVM_XEN_HVM_EVTCHN_SEND: Ioctl
"""On a vm descriptor; in struct kvm_irq_routing_xen_evtchn.

Capability: KVM_CAP_XEN_HVM. KVM API: 4.135. Method: VM.xen.send_event.
"""

KVM_RUN: Ioctl
"""On a vcpu descriptor; nothing.

Capability: none. KVM API: 4.10. Method: VCPU.run.
"""

KVM_GET_REGS: Ioctl
"""On a vcpu descriptor; out struct kvm_regs.

Capability: none. KVM API: 4.11. Method: VCPU.regs.
"""

KVM_SET_REGS: Ioctl
"""On a vcpu descriptor; in struct kvm_regs.

Capability: none. KVM API: 4.12. Method: VCPU.regs.
"""

KVM_GET_SREGS: Ioctl
"""On a vcpu descriptor; out struct kvm_sregs.

Capability: none. KVM API: 4.13. Method: VCPU.sregs.
"""

KVM_SET_SREGS: Ioctl
"""On a vcpu descriptor; in struct kvm_sregs.

Capability: none. KVM API: 4.14. Method: VCPU.sregs.
"""

KVM_GET_SREGS2: Ioctl
"""On a vcpu descriptor; out struct kvm_sregs2.

Capability: KVM_CAP_SREGS2. KVM API: 4.131. Method: VCPU.sregs2.
"""

KVM_SET_SREGS2: Ioctl
"""On a vcpu descriptor; in struct kvm_sregs2.

Capability: KVM_CAP_SREGS2. KVM API: 4.132. Method: VCPU.sregs2.
"""

KVM_TRANSLATE: Ioctl
"""On a vcpu descriptor; inout struct kvm_translation.

Capability: none. KVM API: 4.15. Method: VCPU.translate.
"""

KVM_INTERRUPT: Ioctl
"""On a vcpu descriptor; in struct kvm_interrupt.

Capability: none. KVM API: 4.16. Method: VCPU.interrupt.
"""

KVM_NMI: Ioctl
"""On a vcpu descriptor; nothing.

Capability: KVM_CAP_USER_NMI. KVM API: 4.64. Method: VCPU.nmi.
"""

KVM_SMI: Ioctl
"""On a vcpu descriptor; nothing.

Capability: KVM_CAP_X86_SMM. KVM API: 4.96. Method: VCPU.smi.
"""

KVM_GET_MSRS: Ioctl
"""On a vcpu or system descriptor; inout struct kvm_msrs.

Capability: none. KVM API: 4.18. Method: VCPU.msrs.
"""

KVM_SET_MSRS: Ioctl
"""On a vcpu descriptor; in struct kvm_msrs.

Capability: none. KVM API: 4.19. Method: VCPU.msrs.
"""

KVM_SET_CPUID: Ioctl
"""On a vcpu descriptor; in struct kvm_cpuid.

Capability: none. KVM API: 4.20. Method: VCPU.set_cpuid1.
"""

KVM_SET_CPUID2: Ioctl
"""On a vcpu descriptor; in struct kvm_cpuid2.

Capability: KVM_CAP_EXT_CPUID. KVM API: 4.20. Method: VCPU.set_cpuid.
"""

KVM_GET_CPUID2: Ioctl
"""On a vcpu descriptor; inout struct kvm_cpuid2.

Capability: KVM_CAP_EXT_CPUID. KVM API: 4.20. Method: VCPU.get_cpuid.
"""

KVM_SET_SIGNAL_MASK: Ioctl
"""On a vcpu descriptor; in struct kvm_signal_mask.

Capability: none. KVM API: 4.21. Method: VCPU.set_signal_mask.
"""

KVM_GET_FPU: Ioctl
"""On a vcpu descriptor; out struct kvm_fpu.

Capability: none. KVM API: 4.22. Method: VCPU.fpu.
"""

KVM_SET_FPU: Ioctl
"""On a vcpu descriptor; in struct kvm_fpu.

Capability: none. KVM API: 4.23. Method: VCPU.fpu.
"""

KVM_GET_XSAVE: Ioctl
"""On a vcpu descriptor; out struct kvm_xsave.

Capability: KVM_CAP_XSAVE. KVM API: 4.42. Method: VCPU.xsave.
"""

KVM_GET_XSAVE2: Ioctl
"""On a vcpu descriptor; out struct kvm_xsave.

Capability: KVM_CAP_XSAVE2. KVM API: 4.134. Method: VCPU.xsave.
"""

KVM_SET_XSAVE: Ioctl
"""On a vcpu descriptor; in struct kvm_xsave.

Capability: KVM_CAP_XSAVE. KVM API: 4.43. Method: VCPU.xsave.
"""

KVM_GET_XCRS: Ioctl
"""On a vcpu descriptor; out struct kvm_xcrs.

Capability: KVM_CAP_XCRS. KVM API: 4.44. Method: VCPU.xcrs.
"""

KVM_SET_XCRS: Ioctl
"""On a vcpu descriptor; in struct kvm_xcrs.

Capability: KVM_CAP_XCRS. KVM API: 4.45. Method: VCPU.xcrs.
"""

KVM_GET_DEBUGREGS: Ioctl
"""On a vcpu descriptor; out struct kvm_debugregs.

Capability: KVM_CAP_DEBUGREGS. KVM API: 4.33. Method: VCPU.debugregs.
"""

KVM_SET_DEBUGREGS: Ioctl
"""On a vcpu descriptor; in struct kvm_debugregs.

Capability: KVM_CAP_DEBUGREGS. KVM API: 4.34. Method: VCPU.debugregs.
"""

KVM_GET_VCPU_EVENTS: Ioctl
"""On a vcpu descriptor; out struct kvm_vcpu_events.

Capability: KVM_CAP_VCPU_EVENTS. KVM API: 4.31. Method: VCPU.events.
"""

KVM_SET_VCPU_EVENTS: Ioctl
"""On a vcpu descriptor; in struct kvm_vcpu_events.

Capability: KVM_CAP_VCPU_EVENTS. KVM API: 4.32. Method: VCPU.events.
"""

KVM_GET_MP_STATE: Ioctl
"""On a vcpu descriptor; out struct kvm_mp_state.

Capability: KVM_CAP_MP_STATE. KVM API: 4.38. Method: VCPU.mp_state.
"""

KVM_SET_MP_STATE: Ioctl
"""On a vcpu descriptor; in struct kvm_mp_state.

Capability: KVM_CAP_MP_STATE. KVM API: 4.39. Method: VCPU.mp_state.
"""

KVM_GET_LAPIC: Ioctl
"""On a vcpu descriptor; out struct kvm_lapic_state.

Capability: KVM_CAP_IRQCHIP. KVM API: 4.57. Method: VCPU.lapic.
"""

KVM_SET_LAPIC: Ioctl
"""On a vcpu descriptor; in struct kvm_lapic_state.

Capability: KVM_CAP_IRQCHIP. KVM API: 4.58. Method: VCPU.lapic.
"""

KVM_TPR_ACCESS_REPORTING: Ioctl
"""On a vcpu descriptor; inout struct kvm_tpr_access_ctl.

Capability: KVM_CAP_VAPIC. KVM API: no section. Method: VCPU.report_tpr_access.
"""

KVM_SET_VAPIC_ADDR: Ioctl
"""On a vcpu descriptor; in struct kvm_vapic_addr.

Capability: KVM_CAP_VAPIC. KVM API: no section. Method: VCPU.set_vapic_address.
"""

KVM_GET_NESTED_STATE: Ioctl
"""On a vcpu descriptor; inout struct kvm_nested_state.

Capability: KVM_CAP_NESTED_STATE. KVM API: 4.114. Method: VCPU.nested_state.
"""

KVM_SET_NESTED_STATE: Ioctl
"""On a vcpu descriptor; in struct kvm_nested_state.

Capability: KVM_CAP_NESTED_STATE. KVM API: 4.115. Method: VCPU.nested_state.
"""

KVM_SET_GUEST_DEBUG: Ioctl
"""On a vcpu descriptor; in struct kvm_guest_debug.

Capability: KVM_CAP_SET_GUEST_DEBUG. KVM API: 4.87. Method: VCPU.set_guest_debug.
"""

KVM_X86_SETUP_MCE: Ioctl
"""On a vcpu descriptor; in uint64_t.

Capability: KVM_CAP_MCE. KVM API: 4.105. Method: VCPU.mce.setup.
"""

KVM_X86_SET_MCE: Ioctl
"""On a vcpu descriptor; in struct kvm_x86_mce.

Capability: KVM_CAP_MCE. KVM API: 4.106. Method: VCPU.mce.inject.
"""

KVM_KVMCLOCK_CTRL: Ioctl
"""On a vcpu descriptor; nothing.

Capability: KVM_CAP_KVMCLOCK_CTRL. KVM API: 4.70. Method: VCPU.kvmclock_ctrl.
"""

KVM_PRE_FAULT_MEMORY: Ioctl
"""On a vcpu descriptor; inout struct kvm_pre_fault_memory.

Capability: KVM_CAP_PRE_FAULT_MEMORY. KVM API: 4.143. Method: VCPU.pre_fault_memory.
"""

KVM_GET_ONE_REG: Ioctl
"""On a vcpu descriptor; in struct kvm_one_reg.

Capability: KVM_CAP_ONE_REG. KVM API: 4.69. Method: VCPU.get_one_reg.
"""

KVM_SET_ONE_REG: Ioctl
"""On a vcpu descriptor; in struct kvm_one_reg.

Capability: KVM_CAP_ONE_REG. KVM API: 4.68. Method: VCPU.set_one_reg.
"""

KVM_GET_REG_LIST: Ioctl
"""On a vcpu descriptor; inout struct kvm_reg_list.

Capability: KVM_CAP_ONE_REG. KVM API: 4.84. Method: VCPU.one_reg_list.
"""

KVM_XEN_VCPU_GET_ATTR: Ioctl
"""On a vcpu descriptor; inout struct kvm_xen_vcpu_attr.

Capability: KVM_CAP_XEN_HVM. KVM API: 4.129. Method: VCPU.xen.get.
"""

KVM_XEN_VCPU_SET_ATTR: Ioctl
"""On a vcpu descriptor; in struct kvm_xen_vcpu_attr.

Capability: KVM_CAP_XEN_HVM. KVM API: 4.128. Method: VCPU.xen.set.
"""
