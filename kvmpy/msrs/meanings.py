"""What the values of well-known MSRs say (SDM vol. 4 and vol. 3; APM vol. 2, "MSRs")."""

from __future__ import annotations

from collections.abc import Callable

from ..x86.bits import EFER

_FLAGS: dict[int, str] = {
    0x3A: "0 LOCK, 1 VMX_IN_SMX, 2 VMX, 17 SGX_LC, 18 SGX, 20 LMCE",
    0x48: "0 IBRS, 1 STIBP, 2 SSBD, 7 PSFD, 10 BHI_DIS_S",
    0x10A: """0 RDCL_NO, 1 IBRS_ALL, 2 RSBA, 3 SKIP_L1DFL_VMENTRY, 4 SSB_NO, 5 MDS_NO,
        6 PSCHANGE_MC_NO, 7 TSX_CTRL, 8 TAA_NO, 9 MCU_CONTROL, 10 MISC_PACKAGE_CTLS,
        11 ENERGY_FILTERING, 12 DOITM, 13 SBDR_SSDP_NO, 14 FBSDP_NO, 15 PSDP_NO, 17 FB_CLEAR,
        18 FB_CLEAR_CTRL, 19 RRSBA, 20 BHI_NO, 21 XAPIC_DISABLE_STATUS, 23 OVERCLOCKING_STATUS,
        24 PBRSB_NO, 25 GDS_CTRL, 26 GDS_NO, 27 RFDS_NO, 28 RFDS_CLEAR,
        62 ITS_NO""",
    0x17A: "0 RIPV, 1 EIPV, 2 MCIP, 3 LMCE_S",
    0x1A0: """0 FAST_STRINGS, 3 AUTO_THERMAL, 7 PERFMON, 11 BTS_UNAVAILABLE, 12 PEBS_UNAVAILABLE,
        16 SPEEDSTEP, 18 MONITOR, 22 LIMIT_CPUID, 23 XTPR_DISABLE, 34 XD_DISABLE,
        38 TURBO_DISABLE""",
    0x1D9: """0 LBR, 1 BTF, 2 BUS_LOCK_DETECT, 6 TR, 7 BTS, 8 BTINT, 9 BTS_OFF_OS,
        10 BTS_OFF_USR, 11 FREEZE_LBRS_ON_PMI, 12 FREEZE_PERFMON_ON_PMI, 14 FREEZE_WHILE_SMM,
        15 RTM_DEBUG""",
    0x6A0: "0 SH_STK, 1 WR_SHSTK, 2 ENDBR, 3 LEG_IW, 4 NO_TRACK, 5 SUPPRESS_DIS, 10 SUPPRESS",
    0x6A2: "0 SH_STK, 1 WR_SHSTK, 2 ENDBR, 3 LEG_IW, 4 NO_TRACK, 5 SUPPRESS_DIS, 10 SUPPRESS",
    0xC000_0080: ", ".join(f"{bit} {name}" for bit, name in EFER.items()),
    0xC001_0010: """18 MTRR_FIX_DRAM, 19 MTRR_FIX_DRAM_MOD, 20 MTRR_VAR_DRAM, 21 TOM2,
        22 TOM2_FORCE_WB, 23 MEM_ENCRYPT, 24 SNP, 25 VMPL""",
    0xC001_0015: """0 SMMLOCK, 3 TLB_CACHE_DIS, 4 INVD_WBINVD, 8 IGNNE_EM, 9 MON_MWAIT_DIS,
        10 MON_MWAIT_USER, 13 SMI_SP_CYC_DIS, 14 RSM_SP_CYC_DIS, 17 WRAP32_DIS, 18 MC_STATUS_WR,
        20 IO_CFG_GP_FAULT, 24 TSC_FREQ_SEL, 25 CPB_DIS, 27 EFF_FREQ_CNT_MWAIT, 30 IRPERF,
        35 CPUID_USER_DIS""",
    0xC001_0114: "0 DPD, 1 R_INIT, 2 DIS_A20M, 3 LOCK, 4 SVMDIS",
}  # fmt: skip

_MEMORY_TYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC-"}


def _flags(text: str, value: int) -> str:
    """The flags of ``text`` that are set, and the other bits in hex."""
    found = []
    for entry in text.split(","):
        bit, name = entry.split()
        if value >> int(bit) & 1:
            found.append(name)
            value &= ~(1 << int(bit))
    return " ".join([*found, f"{value:#x}"] if value else found) or "none"


def _memory_type(value: int) -> str:
    return _MEMORY_TYPES.get(value, f"reserved type {value}")


def _apic_base(value: int) -> str:
    mode = {0: "off", 1: "invalid", 2: "xAPIC", 3: "x2APIC"}[value >> 10 & 3]
    return f"{value & ~0xFFF:#x}, {mode}" + (", BSP" if value >> 8 & 1 else "")


def _star(value: int) -> str:
    call, back = value >> 32 & 0xFFFF, value >> 48 & 0xFFFF
    return (
        f"SYSCALL CS {call & 0xFFFC:#x} SS {call + 8:#x}, SYSRET CS {back | 3:#x} "
        f"(64-bit {back + 16 | 3:#x}) SS {back + 8 | 3:#x}, 32-bit EIP {value & 0xFFFFFFFF:#x}"
    )


def _pat(value: int) -> str:
    return " ".join(_memory_type(value >> 8 * entry & 0xFF) for entry in range(8))


def _mtrr_cap(value: int) -> str:
    extras = _flags("8 FIX, 10 WC, 11 SMRR, 12 PRMRR", value & ~0xFF)
    return f"{value & 0xFF} variable ranges, {extras}"


def _mtrr_default(value: int) -> str:
    return f"{_memory_type(value & 0xFF)}, {_flags('10 FIXED, 11 ENABLED', value & ~0xFF)}"


def _mtrr_base(value: int) -> str:
    return f"{value & ~0xFFF:#x} {_memory_type(value & 0xFF)}"


def _mtrr_mask(value: int) -> str:
    return f"{value & ~0xFFF:#x}, {'valid' if value >> 11 & 1 else 'not valid'}"


def _clock(value: int) -> str:
    return f"gpa {value & ~1:#x}, {'on' if value & 1 else 'off'}"


def _bits(value: int) -> str:
    return ", ".join(f"bit {bit}" for bit in range(64) if value >> bit & 1) or "none"


_DECODERS: dict[int, Callable[[int], str]] = {
    0x1B: _apic_base,
    0xFE: _mtrr_cap,
    0x277: _pat,
    0x2FF: _mtrr_default,
    0xDA0: _bits,
    0x4B56_4D01: _clock,
    0x12: _clock,
    0xC000_0081: _star,
    0xC000_0084: lambda value: f"clears RFLAGS {value:#x}",
}


def meaning(index: int, value: int) -> str:
    """What ``value`` says in MSR ``index``; "" for one that is just a number.

    >>> from kvmpy.msrs.meanings import meaning
    >>> meaning(0x1B, 0xFEE00900)
    '0xfee00000, xAPIC, BSP'
    """
    if index in _FLAGS:
        return _flags(_FLAGS[index], value)
    if index in _DECODERS:
        return _DECODERS[index](value)
    if 0x200 <= index < 0x220:
        return (_mtrr_mask if index & 1 else _mtrr_base)(value)
    if 0x250 <= index <= 0x26F:
        return _pat(value)
    return ""
