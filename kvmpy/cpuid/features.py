"""Feature flags of CPUID by name: where each is, what else it is called, what it needs.

A name is the one of Linux's /proc/cpuinfo where that has one, then come the names QEMU and the
manuals use. Case, "-", "." and "_" never matter: "SSE4.1", "sse4-1" and "sse4_1" are one feature.
Where /proc/cpuinfo and QEMU disagree about a name ("stibp", "ssbd", "ibrs" and "ibpb" are the
kernel's own summaries there), it means what it means to QEMU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from ..values import dataclass

SDM = 'SDM vol. 2, "CPUID"'
APM = "APM vol. 3, appendix E"
KVM = "KVM CPUID bits (kernel documentation)"
CENTAUR = "VIA PadLock programming guide"

#: function, index, register, source, then "bit name alias ..." separated by commas.
_WORDS: tuple[tuple[int, int, str, str, str], ...] = (
    (0x1, 0, "edx", SDM, """
        0 fpu, 1 vme, 2 de, 3 pse, 4 tsc, 5 msr, 6 pae, 7 mce, 8 cx8, 9 apic, 11 sep, 12 mtrr,
        13 pge, 14 mca, 15 cmov, 16 pat, 17 pse36, 18 pn psn, 19 clflush clfsh, 21 dts ds,
        22 acpi, 23 mmx, 24 fxsr, 25 sse, 26 sse2, 27 ss, 28 ht htt, 29 tm, 30 ia64, 31 pbe"""),
    (0x1, 0, "ecx", SDM, """
        0 pni sse3, 1 pclmulqdq pclmul, 2 dtes64, 3 monitor mwait, 4 ds_cpl, 5 vmx, 6 smx, 7 est,
        8 tm2, 9 ssse3, 10 cid cnxt_id, 11 sdbg, 12 fma, 13 cx16, 14 xtpr, 15 pdcm, 17 pcid,
        18 dca, 19 sse4_1, 20 sse4_2, 21 x2apic, 22 movbe, 23 popcnt,
        24 tsc_deadline_timer tsc_deadline, 25 aes, 26 xsave, 27 osxsave, 28 avx, 29 f16c,
        30 rdrand, 31 hypervisor"""),
    (0x6, 0, "eax", SDM, """
        0 dtherm, 1 ida turbo, 2 arat, 4 pln, 6 pts, 7 hwp, 8 hwp_notify, 9 hwp_act_window,
        10 hwp_epp, 11 hwp_pkg_req, 19 hfi"""),
    (0x6, 0, "ecx", SDM, "0 aperfmperf, 3 epb"),
    (0x7, 0, "ebx", SDM, """
        0 fsgsbase, 1 tsc_adjust, 2 sgx, 3 bmi1, 4 hle, 5 avx2, 6 fdp_excptn_only, 7 smep,
        8 bmi2, 9 erms, 10 invpcid, 11 rtm, 12 cqm, 13 zero_fcs_fds, 14 mpx, 15 rdt_a,
        16 avx512f, 17 avx512dq, 18 rdseed, 19 adx, 20 smap, 21 avx512ifma, 22 pcommit,
        23 clflushopt, 24 clwb, 25 intel_pt, 26 avx512pf, 27 avx512er, 28 avx512cd,
        29 sha_ni, 30 avx512bw, 31 avx512vl"""),
    (0x7, 0, "ecx", SDM, """
        0 prefetchwt1, 1 avx512vbmi, 2 umip, 3 pku, 4 ospke, 5 waitpkg,
        6 avx512_vbmi2, 7 shstk cet_ss user_shstk, 8 gfni, 9 vaes, 10 vpclmulqdq, 11 avx512_vnni,
        12 avx512_bitalg, 13 tme, 14 avx512_vpopcntdq, 16 la57, 22 rdpid, 23 kl keylocker,
        24 bus_lock_detect, 25 cldemote, 27 movdiri, 28 movdir64b, 29 enqcmd, 30 sgx_lc,
        31 pks"""),
    (0x7, 0, "edx", SDM, """
        1 sgx_keys, 2 avx512_4vnniw, 3 avx512_4fmaps, 4 fsrm, 5 uintr, 8 avx512_vp2intersect,
        9 srbds_ctrl, 10 md_clear, 11 rtm_always_abort, 13 tsx_force_abort, 14 serialize,
        15 hybrid_cpu, 16 tsxldtrk, 18 pconfig, 19 arch_lbr, 20 ibt cet_ibt, 22 amx_bf16,
        23 avx512_fp16, 24 amx_tile, 25 amx_int8, 26 spec_ctrl, 27 stibp intel_stibp,
        28 flush_l1d, 29 arch_capabilities, 30 core_capabilities core_capability,
        31 ssbd spec_ctrl_ssbd"""),
    (0x7, 1, "eax", SDM, """
        0 sha512, 1 sm3, 2 sm4, 3 rao_int, 4 avx_vnni, 5 avx512_bf16, 6 lass, 7 cmpccxadd,
        8 arch_perfmon_ext, 10 fzrm, 11 fsrs, 12 fsrc, 17 fred, 18 lkgs, 19 wrmsrns, 20 nmi_src,
        21 amx_fp16, 22 hreset, 23 avx_ifma, 26 lam, 27 msrlist, 31 movrs"""),
    (0x7, 1, "ebx", SDM, "0 intel_ppin"),
    (0x7, 1, "edx", SDM, """
        4 avx_vnni_int8, 5 avx_ne_convert, 8 amx_complex, 10 avx_vnni_int16, 14 prefetchiti,
        17 uiret_uif, 18 cet_sss, 19 avx10, 21 apx_f apx"""),
    (0x7, 2, "edx", SDM, """
        0 psfd intel_psfd, 1 ipred_ctrl, 2 rrsba_ctrl, 3 ddpd_u, 4 bhi_ctrl, 5 mcdt_no,
        6 uc_lock_disable"""),
    (0xD, 1, "eax", SDM, "0 xsaveopt, 1 xsavec, 2 xgetbv1, 3 xsaves, 4 xfd"),
    (0xF, 0, "edx", SDM, "1 cqm_llc"),
    (0xF, 1, "edx", SDM, "0 cqm_occup_llc, 1 cqm_mbm_total, 2 cqm_mbm_local"),
    (0x10, 0, "ebx", SDM, "1 cat_l3, 2 cat_l2, 3 mba"),
    (0x12, 0, "eax", SDM, "0 sgx1, 1 sgx2, 11 sgx_edeccssa"),
    (0x4000_0001, 0, "eax", KVM, """
        1 kvm_nopiodelay, 2 kvm_mmu, 3 kvmclock kvm_clocksource2, 4 kvm_asyncpf, 5 kvm_steal_time,
        6 kvm_pv_eoi, 7 kvm_pv_unhalt, 9 kvm_pv_tlb_flush, 10 kvm_asyncpf_vmexit,
        11 kvm_pv_ipi kvm_pv_send_ipi, 12 kvm_poll_control, 13 kvm_pv_sched_yield,
        14 kvm_asyncpf_int, 15 kvm_msi_ext_dest_id, 16 kvm_hc_map_gpa_range,
        17 kvm_migration_control, 24 kvmclock_stable_bit kvm_clocksource_stable"""),
    (0x4000_0001, 0, "edx", KVM, "0 kvm_hint_dedicated kvm_hints_realtime"),
    (0x8000_0001, 0, "ecx", APM, """
        0 lahf_lm, 1 cmp_legacy, 2 svm, 3 extapic, 4 cr8_legacy, 5 abm lzcnt, 6 sse4a,
        7 misalignsse, 8 3dnowprefetch, 9 osvw, 10 ibs, 11 xop, 12 skinit, 13 wdt, 15 lwp,
        16 fma4, 17 tce, 19 nodeid_msr, 21 tbm, 22 topoext, 23 perfctr_core, 24 perfctr_nb,
        26 bpext, 27 ptsc, 28 perfctr_llc, 29 mwaitx"""),
    (0x8000_0001, 0, "edx", APM, """
        11 syscall, 19 mp, 20 nx xd, 22 mmxext, 25 fxsr_opt ffxsr, 26 pdpe1gb, 27 rdtscp,
        29 lm i64, 30 3dnowext, 31 3dnow"""),
    (0x8000_0007, 0, "ebx", APM, "0 overflow_recov, 1 succor, 3 smca"),
    (0x8000_0007, 0, "edx", APM, """
        7 hw_pstate, 8 invtsc constant_tsc nonstop_tsc, 9 cpb, 11 proc_feedback, 12 acc_power"""),
    (0x8000_0008, 0, "ebx", APM, """
        0 clzero, 1 irperf, 2 xsaveerptr, 4 rdpru, 6 amd_mba, 8 mcommit, 9 wbnoinvd,
        12 ibpb amd_ibpb, 13 int_wbinvd, 14 ibrs amd_ibrs, 15 amd_stibp, 16 ibrs_always_on,
        17 stibp_always_on amd_stibp_always_on, 18 ibrs_preferred, 19 ibrs_same_mode,
        20 no_efer_lmsle, 21 invlpgb, 23 amd_ppin, 24 amd_ssbd, 25 virt_ssbd,
        26 amd_no_ssb amd_ssb_no, 27 cppc, 28 amd_psfd, 29 btc_no, 30 ibpb_ret, 31 brs"""),
    (0x8000_000A, 0, "edx", APM, """
        0 npt, 1 lbrv, 2 svm_lock, 3 nrip_save, 4 tsc_scale, 5 vmcb_clean, 6 flushbyasid,
        7 decodeassists, 10 pausefilter, 12 pfthreshold, 13 avic, 15 v_vmsave_vmload, 16 vgif,
        18 x2avic, 20 v_spec_ctrl, 25 vnmi, 28 svme_addr_chk"""),
    (0x8000_001F, 0, "eax", APM, """
        0 sme, 1 sev, 2 vm_page_flush, 3 sev_es, 4 sev_snp, 9 v_tsc_aux, 10 sme_coherent,
        14 debug_swap"""),
    (0x8000_0021, 0, "eax", APM, """
        0 no_nested_data_bp, 1 wrmsr_xx_base_ns, 2 lfence_always_serializing lfence_rdtsc,
        5 verw_clear, 6 null_sel_clr_base, 8 autoibrs, 9 no_smm_ctl_msr, 10 amd_fsrs, 11 amd_fsrc,
        17 cpuid_user_dis, 20 prefetchi, 24 eraps, 27 sbpb, 28 ibpb_brtype, 29 srso_no,
        30 srso_user_kernel_no"""),
    (0x8000_0021, 0, "ecx", APM, "1 tsa_sq_no, 2 tsa_l1_no"),
    (0x8000_0022, 0, "eax", APM, "0 perfmon_v2, 1 amd_lbr_v2, 2 amd_lbr_pmc_freeze"),
    (0xC000_0001, 0, "edx", CENTAUR, """
        2 rng xstore, 3 rng_en xstore_en, 6 ace xcrypt, 7 ace_en xcrypt_en, 8 ace2, 9 ace2_en,
        10 phe, 11 phe_en, 12 pmm, 13 pmm_en"""),
)  # fmt: skip

_NEED_SVM = (
    "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists pausefilter "
    "pfthreshold avic v_vmsave_vmload vgif x2avic v_spec_ctrl vnmi svme_addr_chk"
)
#: feature -> what it cannot exist without. Instructions need the registers they work on, and
#: those their way of being saved (SDM vol. 1, the sections "Detection of ...").
REQUIRES: dict[str, str] = {
    "vme": "fpu", "mmx": "fpu", "mmxext": "mmx", "3dnow": "mmx", "3dnowext": "3dnow",
    "fxsr": "fpu", "fxsr_opt": "fxsr", "sse": "fxsr", "sse2": "sse", "pni": "sse2",
    "ssse3": "pni", "sse4_1": "ssse3", "sse4_2": "sse4_1", "sse4a": "pni", "misalignsse": "sse",
    "aes": "sse2", "pclmulqdq": "sse2", "sha_ni": "sse2", "gfni": "sse2", "kl": "sse2",
    "xsave": "fxsr", "osxsave": "xsave", "xsaveopt": "xsave", "xsavec": "xsave",
    "xgetbv1": "xsave", "xsaves": "xsave", "xfd": "xsaves xgetbv1", "xsaveerptr": "fxsr",
    "avx": "xsave sse4_2", "f16c": "avx", "fma": "avx", "fma4": "avx", "xop": "avx",
    "avx2": "avx", "vaes": "avx", "vpclmulqdq": "avx", "avx_vnni": "avx2", "avx_ifma": "avx2",
    "avx_vnni_int8": "avx2", "avx_vnni_int16": "avx2", "avx_ne_convert": "avx2",
    "sha512": "avx", "sm3": "avx", "sm4": "avx",
    "avx512f": "avx2 fma f16c", "avx512cd": "avx512f", "avx512er": "avx512f",
    "avx512pf": "avx512f", "avx512dq": "avx512f", "avx512bw": "avx512f", "avx512vl": "avx512f",
    "avx512ifma": "avx512f", "avx512vbmi": "avx512bw", "avx512_vbmi2": "avx512bw",
    "avx512_vnni": "avx512f", "avx512_bitalg": "avx512bw", "avx512_vpopcntdq": "avx512f",
    "avx512_4vnniw": "avx512f", "avx512_4fmaps": "avx512f", "avx512_vp2intersect": "avx512f",
    "avx512_bf16": "avx512bw", "avx512_fp16": "avx512bw avx512vl avx512dq", "avx10": "avx512f",
    "amx_tile": "xfd", "amx_bf16": "amx_tile", "amx_int8": "amx_tile", "amx_fp16": "amx_tile",
    "amx_complex": "amx_tile", "apx_f": "xsave",
    "mpx": "xsave", "pku": "xsave", "ospke": "pku", "lwp": "xsave", "shstk": "xsaves",
    "cet_sss": "shstk", "enqcmd": "xsaves", "uintr": "xsaves",
    "pse36": "pse", "lm": "pae", "syscall": "msr", "sep": "msr",
    "nx": "pae", "pdpe1gb": "lm", "la57": "lm", "lam": "lm", "pcid": "lm", "lahf_lm": "lm",
    "cx16": "cx8", "fsgsbase": "lm", "fred": "lkgs", "lkgs": "lm", "lass": "lm",
    "invlpgb": "lm",
    "x2apic": "apic", "tsc_deadline_timer": "apic tsc", "arat": "apic", "extapic": "apic",
    "rdtscp": "tsc", "invtsc": "tsc", "tsc_adjust": "tsc msr", "hle": "rtm", "tsxldtrk": "rtm",
    "mtrr": "msr", "mca": "mce msr", "smca": "mca", "succor": "mca", "overflow_recov": "mca",
    "pat": "msr", "dtes64": "dts", "ds_cpl": "dts", "pdcm": "msr",
    "sgx_lc": "sgx", "sgx_keys": "sgx", "sgx1": "sgx", "sgx2": "sgx1", "sgx_edeccssa": "sgx1",
    "cqm_llc": "cqm", "cqm_occup_llc": "cqm_llc", "cqm_mbm_total": "cqm_llc",
    "cqm_mbm_local": "cqm_llc", "cat_l3": "rdt_a", "cat_l2": "rdt_a", "mba": "rdt_a",
    "hwp_notify": "hwp", "hwp_act_window": "hwp", "hwp_epp": "hwp", "hwp_pkg_req": "hwp",
    **dict.fromkeys(_NEED_SVM.split(), "svm"),
    "sev_es": "sev", "sev_snp": "sev_es", "debug_swap": "sev_es",
    "kvmclock_stable_bit": "kvmclock", "kvm_asyncpf_vmexit": "kvm_asyncpf",
    "kvm_asyncpf_int": "kvm_asyncpf", "kvm_pv_eoi": "apic", "kvm_pv_ipi": "apic",
    "kvm_pv_unhalt": "apic",
    "rng_en": "rng", "ace_en": "ace", "ace2_en": "ace2", "phe_en": "phe", "pmm_en": "pmm",
}  # fmt: skip

#: Names of several features at once; without them some leaves are empty, too.
GROUPS: dict[str, str] = {
    "pmu": "pdcm dts dtes64 ds_cpl pbe perfctr_core perfctr_nb perfctr_llc perfmon_v2 "
    "amd_lbr_v2 arch_lbr arch_perfmon_ext ibs irperf brs",
    "kvm": "kvm_nopiodelay kvm_mmu kvmclock kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt "
    "kvm_pv_tlb_flush kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_msi_ext_dest_id "
    "kvm_hc_map_gpa_range kvm_migration_control kvmclock_stable_bit kvm_asyncpf_vmexit "
    "kvm_asyncpf_int kvm_hint_dedicated",
}

#: Leaves that describe one feature (or group) and are all zero without it.
LEAVES_OF: dict[str, tuple[int, ...]] = {
    "monitor": (0x5,), "pmu": (0xA, 0x8000_0022), "cqm": (0xF,), "rdt_a": (0x10,),
    "sgx": (0x12,), "intel_pt": (0x14,), "kl": (0x19,), "arch_lbr": (0x1C,),
    "amx_tile": (0x1D, 0x1E), "avx10": (0x24,), "svm": (0x8000_000A,), "ibs": (0x8000_001B,),
    "lwp": (0x8000_001C,), "kvm": (0x4000_0000, 0x4000_0001),
}  # fmt: skip

#: XSAVE component -> the features it belongs to: it goes with the last of them
#: (SDM vol. 1, "XSAVE-Supported Features and State-Component Bitmaps").
XSAVE_COMPONENTS: dict[int, str] = {
    0: "fpu", 1: "sse", 2: "avx", 3: "mpx", 4: "mpx", 5: "avx512f", 6: "avx512f", 7: "avx512f",
    8: "intel_pt", 9: "pku", 10: "enqcmd", 11: "shstk ibt", 12: "shstk ibt", 13: "hwp",
    14: "uintr", 15: "arch_lbr", 16: "hwp", 17: "amx_tile", 18: "amx_tile", 19: "apx_f",
    62: "lwp",
}  # fmt: skip

#: Bits of leaf 1 that AMD's leaf 80000001h repeats in EDX (APM vol. 3, "Function 8000_0001h").
_REPEATED = (*range(10), *range(12, 18), 23, 24)


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature flag: bit ``bit`` of ``register`` of leaf ``function``, subleaf ``index``.

    ``copies``: other places that say the same (function, index, register, bit).

    >>> from kvmpy.cpuid.features import find
    >>> find("avx2")
    <avx2: CPUID 7.0 EBX bit 5>
    """

    name: str
    function: int
    index: int
    register: str
    bit: int
    source: str
    aliases: tuple[str, ...] = ()
    copies: tuple[tuple[int, int, str, int], ...] = ()

    @property
    def places(self) -> tuple[tuple[int, int, str, int], ...]:
        """Every bit that says it: function, index, register, bit. The first one decides.

        >>> from kvmpy.cpuid.features import find
        >>> find("avx2").places
        ((7, 0, 'ebx', 5),)
        """
        return ((self.function, self.index, self.register, self.bit), *self.copies)

    def __repr__(self) -> str:
        where = f"{self.function:X}.{self.index:X} {self.register.upper()} bit {self.bit}"
        return f"<{self.name}: CPUID {where}>"


def _copies(name: str, function: int, register: str, bit: int) -> list[tuple[int, int, str, int]]:
    if (function, register) == (1, "edx") and bit in _REPEATED:
        return [(0x8000_0001, 0, "edx", bit)]
    # kvmclock has two sets of MSRs, each announced by a bit; KVM always gives both.
    return [(0x4000_0001, 0, "eax", 0)] if name == "kvmclock" else []


@functools.cache
def table() -> dict[str, Feature]:
    """All features by name, in the order of the leaves.

    >>> from kvmpy.cpuid import features
    >>> features.table()["x2apic"].bit
    21
    """
    features = {}
    for function, index, register, source, text in _WORDS:
        for entry in text.split(","):
            bit, name, *aliases = entry.split()
            copies = tuple(_copies(name, function, register, int(bit)))
            features[name] = Feature(
                name, function, index, register, int(bit), source, tuple(aliases), copies
            )
    return features


def _squeeze(name: str) -> str:
    return name.strip().lower().translate({ord(c): None for c in "-_. "})


@functools.cache
def _by_spelling() -> dict[str, str]:
    names = {}
    for feature in table().values():
        for name in (feature.name, *feature.aliases):
            names[_squeeze(name)] = feature.name
    return names


def _unknown(name: str) -> ValueError:
    import difflib

    known = {**_by_spelling(), **{group: group for group in GROUPS}}
    close = difflib.get_close_matches(_squeeze(name), known, 3, 0.6)
    likely = dict.fromkeys(known[spelling] for spelling in close)
    hint = f": did you mean {' or '.join(likely)}?" if likely else ""
    return ValueError(f"no CPUID feature is called {name!r}{hint}")


def find(name: str) -> Feature:
    """The feature of that name, in any spelling.

    Raises ValueError, which names close matches, if there is none.

    >>> from kvmpy.cpuid.features import find
    >>> find("SSE4.1") is find("sse4-1") is find("sse4_1")
    True
    """
    canonical = _by_spelling().get(_squeeze(name))
    if canonical is None:
        raise _unknown(name)
    return table()[canonical]


def expand(names: Iterable[str]) -> Iterator[str]:
    """Canonical names of features, and of groups followed by their members.

    >>> from kvmpy.cpuid.features import expand
    >>> list(expand(["SSE4.1", "pmu"]))[:3]
    ['sse4_1', 'pmu', 'pdcm']
    """
    for name in names:
        group = _squeeze(name)
        if group in GROUPS:
            yield group
            yield from GROUPS[group].split()
        else:
            yield find(name).name


@functools.cache
def _dependents() -> dict[str, tuple[str, ...]]:
    result: dict[str, list[str]] = {}
    for feature, needs in REQUIRES.items():
        for need in needs.split():
            result.setdefault(need, []).append(feature)
    return {name: tuple(features) for name, features in result.items()}


def _closure(names: Iterable[str], edges: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    waiting = list(names)[::-1]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = None
            waiting.extend(reversed(edges.get(name, ())))
    return tuple(found)


def with_dependents(names: Iterable[str]) -> tuple[str, ...]:
    """The features (and groups) named, and all that cannot exist without them.

    >>> from kvmpy.cpuid.features import with_dependents
    >>> "avx512_vnni" in with_dependents(["avx"])
    True
    """
    return _closure(expand(names), _dependents())


def with_requirements(names: Iterable[str]) -> tuple[str, ...]:
    """The features (and groups) named, and all they need.

    >>> from kvmpy.cpuid.features import with_requirements
    >>> with_requirements(["cx16"])
    ('cx16', 'cx8')
    """
    return _closure(expand(names), {name: tuple(x.split()) for name, x in REQUIRES.items()})
