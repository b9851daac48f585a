"""The steps of the guests lab-vmx and lab-svm in words, and the numbers they come back with.

Sources: SDM vol. 3, "VM-Instruction Error Numbers" (in "VMX Instruction Reference"), "VMX Basic
Exit Reasons" (appendix) and "VM-Entry Failures During or After Loading Guest State"; APM vol. 2,
appendix "SVM Intercept Exit Codes".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from ..msrs.msrs import describe
from ..x86.exceptions import ERROR_CODE_VECTORS, VECTORS


@dataclass(frozen=True)
class VmxStep:
    """A thing that the guest has tried.

    ``vector``: of the fault that came instead, None if none did; ``error_code`` is that fault's.
    ``carry``, ``zero``: VT-x's flags for failure. ``first``, ``second``: words that the step tells:
    after an entry the exit reason and qualification (or exit code and EXITINFO1); after a refused
    one the VM-instruction error in ``second``.
    ``exits``: from L1 and L2 to L0 for it, without page faults and interrupts of the host; None if
    KVM does not count, or interprets ring 0. ``entries``: of L0 into L2.
    ``outcome``: all that in words.
    """

    name: str
    title: str
    vector: int | None
    error_code: int
    carry: bool
    zero: bool
    first: int
    second: int
    exits: int | None
    entries: int | None
    outcome: str


TITLES: Final = {
    # lab-vmx
    "vmxon_early": "VMXON while CR4.VMXE is 0",
    "vmxe": "set CR4.VMXE",
    "feature_read": "read IA32_FEATURE_CONTROL",
    "vmxon_locked_out": "VMXON before it is set",
    "feature_write": "write it: lock and VMX",
    "feature_again": "write it again: it is locked",
    "basic": "read IA32_VMX_BASIC",
    "vmxon": "VMXON",
    "vmxon_again": "VMXON once more",
    "vmlaunch_nothing": "VMLAUNCH without a VMCS",
    "vmptrld_misaligned": "VMPTRLD of address 1",
    "vmclear": "VMCLEAR",
    "vmptrld": "VMPTRLD",
    "vmwrite_unknown": "VMWRITE of a field that does not exist",
    "fields": "VMWRITE of all fields",
    "launch_bad_control": "VMLAUNCH, pin controls all 0",
    "launch_bad_host": "VMLAUNCH, host CS a null selector",
    "launch_bad_guest": "VMLAUNCH, L2's RFLAGS bit 1 is 0",
    "launch_bad_link": "VMLAUNCH, link pointer 1",
    "resume_clear": "VMRESUME before any VMLAUNCH",
    "launch": "VMLAUNCH: L2 runs to CPUID",
    "launch_again": "VMLAUNCH of what is launched",
    "resume": "VMRESUME: L2 runs to VMCALL",
    "resume_hlt": "VMRESUME: L2 runs to HLT",
    "host_rip": "VMWRITE of where exits arrive",
    "trips": "L2 to CPUID, again and again",
    "vmxe_off_inside": "clear CR4.VMXE before VMXOFF",
    "vmxoff": "VMXOFF",
    "vmxoff_again": "VMXOFF once more",
    "vmxe_off": "clear CR4.VMXE",
    # lab-svm
    "vmrun_early": "VMRUN while EFER.SVME is 0",
    "vm_cr": "read VM_CR",
    "svme": "set EFER.SVME",
    "vmrun_misaligned": "VMRUN of a misaligned VMCB",
    "hsave": "write VM_HSAVE_PA",
    "vmcb": "VMSAVE, and fill in the VMCB",
    "run_asid_0": "VMRUN, ASID 0",
    "run_no_intercept": "VMRUN, VMRUN not intercepted",
    "run_no_svme": "VMRUN, L2's EFER.SVME is 0",
    "run": "VMRUN: L2 runs to CPUID",
    "run_again": "VMRUN: L2 runs to VMMCALL",
    "run_hlt": "VMRUN: L2 runs to HLT",
    "stgi": "STGI: interrupts may come again",
    "svme_off": "clear EFER.SVME",
    "vmrun_late": "VMRUN once more",
}

#: Headings over the steps, by the first step under each.
PARTS: Final = {
    "vmxon_early": "Turning it on",
    "vmxon_again": "A VMCS, and refusals",
    "launch": "L2 runs",
    "vmxe_off_inside": "Turning it off",
    "vmrun_early": "Turning it on",
    "vmcb": "A VMCB, and refusals",
    "run": "L2 runs",
    "stgi": "Turning it off",
}

INSTRUCTION_ERRORS: Final = {
    1: "VMCALL in VMX root operation",
    2: "VMCLEAR with invalid address",
    3: "VMCLEAR with VMXON pointer",
    4: "VMLAUNCH, not clear",
    5: "VMRESUME, not launched",
    6: "VMRESUME after VMXOFF",
    7: "invalid control field",
    8: "invalid host-state field",
    9: "VMPTRLD with invalid address",
    10: "VMPTRLD with VMXON pointer",
    11: "VMPTRLD with wrong revision",
    12: "unsupported VMCS component",
    13: "read-only VMCS component",
    15: "VMXON in VMX root operation",
    16: "invalid executive-VMCS pointer",
    17: "non-launched executive VMCS",
    18: "executive VMCS is not VMXON's",
    19: "VMCALL with non-clear VMCS",
    20: "VMCALL with invalid exit controls",
    22: "VMCALL with wrong MSEG revision",
    23: "VMXOFF under dual monitor",
    24: "VMCALL with bad SMM features",
    25: "bad controls in executive VMCS",
    26: "events blocked by MOV SS",
    28: "invalid INVEPT/INVVPID operand",
}
EXIT_REASONS: Final = {
    0: "exception or NMI",
    1: "external interrupt",
    2: "triple fault",
    10: "CPUID",
    12: "HLT",
    18: "VMCALL",
    28: "control-register access",
    33: "invalid guest state",
    34: "MSR loading",
    41: "machine check",
    48: "EPT violation",
    49: "EPT misconfiguration",
}
#: Exit qualification of an entry that failed on the guest's state.
ENTRY_FAILURES: Final = {0: "", 2: "PDPTEs", 3: "NMI while STI blocks", 4: "VMCS link pointer"}
SVM_EXITS: Final = {
    0x60: "interrupt",
    0x72: "CPUID",
    0x78: "HLT",
    0x7F: "shutdown",
    0x80: "VMRUN",
    0x81: "VMMCALL",
    0x400: "nested page fault",
}
SVM_INVALID: Final = (1 << 64) - 1
_ENTRY_FAILED: Final = 1 << 31
_MSRS: Final = {"feature_read": "FEATURE_CONTROL", "vm_cr": "VM_CR"}
_SVM_RUNS: Final = (
    "run_asid_0", "run_no_intercept", "run_no_svme", "run", "run_again", "run_hlt", "trips",
)  # fmt: skip


def explained(step: VmxStep, vmx: bool) -> VmxStep:
    """The step with its outcome in words.

    >>> step = kvmpy.lab.experiment("vmx").run().steps[0]
    >>> kvmpy.lab.vmx_codes.explained(step, True).outcome
    '#UD'
    """
    return dataclasses.replace(step, outcome=_outcome(step, vmx))


def _outcome(step: VmxStep, vmx: bool) -> str:
    if step.vector is not None:
        code = f"({step.error_code:#x})" if step.error_code else ""
        zero = "(0)" if step.vector in ERROR_CODE_VECTORS and not code else ""
        name = VECTORS[step.vector][0] if step.vector in VECTORS else f"vector {step.vector}"
        return f"{name}{code}{zero}"
    if step.name in _MSRS:
        return describe(_MSRS[step.name], step.first).partition(" ")[2]
    if step.name == "basic":
        return f"revision {step.first & 0x7FFF_FFFF:#x}, {step.second & 0x1FFF} bytes"
    if vmx and step.name == "fields":
        return f"{step.first} fields"
    if vmx:
        return _vmx_outcome(step)
    return svm_exit(step.first) if step.name in _SVM_RUNS else "done"


def _vmx_outcome(step: VmxStep) -> str:
    if step.first:
        return vmx_exit(step.first, step.second)
    if step.carry:
        return "VMfailInvalid: no current VMCS"
    return vmx_error(step.second) if step.zero else "done"


def sets_flags(name: str) -> bool:
    """Whether a step of lab-vmx is an instruction of VT-x: CF and ZF tell how it went (SDM vol. 3,
    "VMX Instruction Reference", conventions).

    >>> kvmpy.lab.vmx_codes.sets_flags("vmclear"), kvmpy.lab.vmx_codes.sets_flags("vmxe")
    (True, False)
    """
    return name.startswith(("vm", "launch", "resume")) and not name.startswith(("vmxe", "vmcb"))


def vmx_error(number: int) -> str:
    """A VM-instruction error, as VMfailValid leaves it in the VMCS.

    >>> kvmpy.lab.vmx_codes.vmx_error(5)
    'VMfail 5: VMRESUME, not launched'
    """
    return f"VMfail {number}: {INSTRUCTION_ERRORS.get(number, 'an unknown error')}"


def vmx_exit(reason: int, qualification: int) -> str:
    """An exit reason; bit 31 says that the entry has failed.

    >>> kvmpy.lab.vmx_codes.vmx_exit(0x80000021, 4)
    'entry failed, 33 invalid guest state: VMCS link pointer'
    >>> kvmpy.lab.vmx_codes.vmx_exit(10, 0)
    'exit 10: CPUID'
    """
    number = reason & 0xFFFF
    name = EXIT_REASONS.get(number, "another reason")
    if not reason & _ENTRY_FAILED:
        return f"exit {number}: {name}"
    detail = ENTRY_FAILURES.get(qualification, f"qualification {qualification:#x}")
    return f"entry failed, {number} {name}" + (f": {detail}" if detail else "")


def svm_exit(code: int) -> str:
    """An exit code of SVM.

    >>> kvmpy.lab.vmx_codes.svm_exit(0x72), kvmpy.lab.vmx_codes.svm_exit((1 << 64) - 1)
    ('exit 0x72: CPUID', 'exit -1: VMEXIT_INVALID')
    """
    if code == SVM_INVALID:
        return "exit -1: VMEXIT_INVALID"
    if 0x40 <= code < 0x60:
        return f"exit {code:#x}: exception {code - 0x40}"
    return f"exit {code:#x}: {SVM_EXITS.get(code, 'another reason')}"
