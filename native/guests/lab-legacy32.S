// lab-legacy32.S - instructions to try in 32-bit protected mode, in any ring.

#define BITS            32
#include "lab-tries.inc"
#include "lab-privileged.inc"
#include "lab-sensitive.inc"
