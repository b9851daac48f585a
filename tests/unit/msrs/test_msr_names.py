"""MSRs by name: the table is consistent; values as text."""

import pytest
from hypothesis import given, strategies as st

from kvmpy.msrs import meanings as msr_values, msrs, table as msr_names

ROWS = list(msr_names._rows())


def test_no_number_and_no_name_twice():
    """With or without prefix; patterns do not run into each other."""
    assert len({row.index for row in ROWS}) == len(ROWS)
    names = [msr_names._plain(name) for row in ROWS for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)
    assert all(0 <= row.index < 1 << 32 and row.name == row.name.upper() for row in ROWS)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("TSC", 0x10), ("IA32_APIC_BASE", 0x1B), ("MSR_IA32_APICBASE", 0x1B),
        ("arch_capabilities", 0x10A), ("SYSENTER_EIP", 0x176), ("MSR_IA32_CR_PAT", 0x277),
        ("MTRR_PHYSBASE3", 0x206), ("MTRR_PHYSMASK0", 0x201), ("MTRR_FIX4K_F8000", 0x26F),
        ("IA32_MC3_MISC", 0x40F), ("IA32_MC31_CTL2", 0x29F), ("PMC1", 0xC2),
        ("MSR_CORE_PERF_FIXED_CTR2", 0x30B), ("IA32_VMX_TRUE_ENTRY_CTLS", 0x490),
        ("X2APIC_ISR7", 0x817), ("X2APIC_ICR", 0x830), ("HV_X64_MSR_SINT15", 0x4000009F),
        ("HV_STIMER3_COUNT", 0x400000B7), ("MSR_KVM_SYSTEM_TIME_NEW", 0x4B564D01),
        ("KVM_STEAL_TIME", 0x4B564D03), ("EFER", 0xC0000080), ("MSR_SYSCALL_MASK", 0xC0000084),
        ("KERNEL_GS_BASE", 0xC0000102), ("MSR_AMD64_TSC_RATIO", 0xC0000104),
        ("PERF_CTL5", 0xC001020A), ("MCA_SYND_BANK2", 0xC0002026), ("VM_HSAVE_PA", 0xC0010117),
    ],
)  # fmt: skip
def test_names_and_numbers(name, index):
    """As the manuals, Linux and Hyper-V write them."""
    assert msrs.index_of(name) == index
    assert msrs.index_of(name.lower()) == index
    assert msrs.index_of(msrs.name_of(index)) == index


@given(st.sampled_from(ROWS))
def test_every_name_leads_back(row):
    """name_of and index_of are each other's inverse; every alias says the same."""
    assert msrs.index_of(msrs.name_of(row.index)) == row.index
    assert all(msrs.index_of(f"IA32_{alias}") == row.index for alias in row.aliases)


def test_close_matches():
    """Of an unknown name."""
    with pytest.raises(KeyError, match=r"did you mean .*SYSENTER_EIP"):
        msrs.index_of("SYSENTR_EIP")
    with pytest.raises(KeyError, match="use its number"):
        msrs.index_of("QQQQQQQQQ")


def test_names_are_listed_by_number():
    """All of them."""
    listed = msrs.names()
    assert [msrs.index_of(name) for name in listed] == sorted(row.index for row in ROWS)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("EFER", 0x500, "EFER 0x500: LME LMA"),
        ("EFER", 0, "EFER 0x0: none"),
        ("EFER", 0x8000_0001, "EFER 0x80000001: SCE 0x80000000"),
        ("APIC_BASE", 0xFEE00D00, "APIC_BASE 0xfee00d00: 0xfee00000, x2APIC, BSP"),
        ("APIC_BASE", 0xFEE00000, "APIC_BASE 0xfee00000: 0xfee00000, off"),
        ("PAT", 0x0007040600070406, "PAT 0x7040600070406: WB WT UC- UC WB WT UC- UC"),
        ("PAT", 0x0203, "PAT 0x203: reserved type 3 reserved type 2 UC UC UC UC UC UC"),
        (
            "STAR",
            0x0023_0010_0000_0000,
            "STAR 0x23001000000000: SYSCALL CS 0x10 SS 0x18, "
            "SYSRET CS 0x23 (64-bit 0x33) SS 0x2b, 32-bit EIP 0x0",
        ),
        ("MISC_ENABLE", 0x1 | 1 << 18, "MISC_ENABLE 0x40001: FAST_STRINGS MONITOR"),
        ("MTRRCAP", 0x508, "MTRRCAP 0x508: 8 variable ranges, FIX WC"),
        ("MTRR_DEF_TYPE", 0xC06, "MTRR_DEF_TYPE 0xc06: WB, FIXED ENABLED"),
        ("MTRR_PHYSBASE0", 0x80000006, "MTRR_PHYSBASE0 0x80000006: 0x80000000 WB"),
        ("MTRR_PHYSMASK0", 0xF80000800, "MTRR_PHYSMASK0 0xf80000800: 0xf80000000, valid"),
        ("MTRR_FIX64K_00000", 0x0606060606060606, "MTRR_FIX64K_00000 0x606060606060606: "
         "WB WB WB WB WB WB WB WB"),
        ("KVM_SYSTEM_TIME_NEW", 0x5001, "KVM_SYSTEM_TIME_NEW 0x5001: gpa 0x5000, on"),
        ("XSS", 0x1800, "XSS 0x1800: bit 11, bit 12"),
        ("SFMASK", 0x700, "SFMASK 0x700: clears RFLAGS 0x700"),
        ("LSTAR", 0x1000, "LSTAR 0x1000"),
        (0x1234, 5, "0x1234 0x5"),
    ],
)  # fmt: skip
def test_described(key, value, text):
    """Flags by name, addresses in hex, the rest as it is."""
    assert msrs.describe(key, value) == text


@given(st.sampled_from([*msr_values._FLAGS, *msr_values._DECODERS, 0x200, 0x201, 0x250, 0x1234]),
       st.integers(0, 2**64 - 1))  # fmt: skip
def test_any_value_can_be_described(index, value):
    """A guest writes what it likes."""
    assert msrs.describe(index, value).startswith(f"{msrs.name_of(index)} {value:#x}")


@given(st.text(max_size=20))
def test_any_text_is_a_name_or_a_key_error(text):
    """Nothing else comes out."""
    if msr_names.find(text) is None:
        with pytest.raises(KeyError):
            msrs.index_of(text)
    else:
        assert msr_names.table()[msrs.index_of(text)]
