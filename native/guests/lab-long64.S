// lab-long64.S - instructions to try in 64-bit code, in any ring.

#define BITS            64
#include "lab-tries.inc"
#include "lab-privileged.inc"
#include "lab-sensitive.inc"
