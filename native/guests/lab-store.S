// lab-store.S - one store, run in any ring of 32-bit and of 64-bit code: the same bytes in both.
//
// The host sets EDI, the address, and ESI, a data segment's selector. What comes instead of the
// store is an exception; behind it, UD2 ends the run.

        .intel_syntax noprefix
        .code32
#include "exports.inc"

        .text
        EXPORT  "store_in_segment"
        mov     ds, esi
        EXPORT  "store"
        mov     [edi], eax              // in 64-bit code: [rdi]
        EXPORT  "stored"
        ud2
