/*
 * Constants of the KVM API that are newer than the uapi headers a distribution may ship.
 * Each is guarded, so that an installed header always wins; the comment names the kernel that
 * added it. Structures are never repeated here: the compiler takes their layout from <linux/kvm.h>.
 */
#ifndef KVMPY_KVM_COMPAT_H
#define KVMPY_KVM_COMPAT_H

#include <linux/kvm.h>

#ifndef KVM_EXIT_NOTIFY
#define KVM_EXIT_NOTIFY 37 /* 6.0 */
#endif
#ifndef KVM_EXIT_LOONGARCH_IOCSR
#define KVM_EXIT_LOONGARCH_IOCSR 38 /* 6.10 */
#endif
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39 /* 6.8 */
#endif
#ifndef KVM_EXIT_TDX
#define KVM_EXIT_TDX 40 /* 6.16 */
#endif

#ifndef KVM_CAP_VM_TYPES
#define KVM_CAP_VM_TYPES 235 /* 6.8 */
#endif

#endif
