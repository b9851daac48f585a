"""The PMU filter, and a VM without PMU."""

import pytest

import kvmpy
from kvmpy.msrs.pmu import amd_event, intel_event, masked_event


def test_filters(vm):
    """Each form is taken, one in place of the other, with and without vCPUs."""
    events = [intel_event(0xC0, 0), intel_event(0x3C, 1), amd_event(0x1C7, 2)]
    vm.set_pmu_event_filter(events)
    vm.vcpu()
    vm.set_pmu_event_filter(events, "deny", fixed_counters=0b101)
    vm.set_pmu_event_filter([], "deny")
    vm.set_pmu_event_filter(range(300), "allow", fixed_counters=0)


def test_masked_filters(vm):
    """With KVM_CAP_PMU_EVENT_MASKED_EVENTS; without it that is the error."""
    event = masked_event(0xC0, mask=0xF0, match=0x10)
    if not vm.check_extension("KVM_CAP_PMU_EVENT_MASKED_EVENTS"):
        with pytest.raises(kvmpy.UnsupportedError) as caught:
            vm.set_pmu_event_filter([event], masked=True)
        assert caught.value.capability == "KVM_CAP_PMU_EVENT_MASKED_EVENTS"
        return
    vm.set_pmu_event_filter([event, masked_event(0xC0, 0, 0, exclude=True)], masked=True)
    with pytest.raises(kvmpy.KvmIoctlError, match="bits that a masked event lacks"):
        vm.set_pmu_event_filter([1 << 40], masked=True)


def test_filters_that_kvm_refuses(vm):
    """More events than KVM takes; an action that is none."""
    with pytest.raises(kvmpy.KvmIoctlError, match=r"allow 301 events.*E2BIG.*300"):
        vm.set_pmu_event_filter([0] * 301)
    with pytest.raises(ValueError, match="neither 'allow' nor 'deny'"):
        vm.set_pmu_event_filter([], "forbid")
    with pytest.raises(OverflowError):
        vm.set_pmu_event_filter([1 << 64])


def test_vm_without_pmu(vm):
    """Where KVM can take it away; and only before the first vCPU."""
    if not vm.check_extension("KVM_CAP_PMU_CAPABILITY"):
        for use in (vm.disable_pmu, lambda: kvmpy.VM("1M", pmu=False)):
            with pytest.raises(kvmpy.UnsupportedError) as caught:
                use()
            assert caught.value.capability == "KVM_CAP_PMU_CAPABILITY"
        return
    with kvmpy.VM("1M", pmu=False) as other:
        other.vcpu()
        with pytest.raises(kvmpy.KvmIoctlError, match="KVM_CAP_PMU_CAPABILITY"):
            other.disable_pmu()
