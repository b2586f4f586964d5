#ifndef DITSERVE_CORE_DEVICES_MULTIVERSION_H_
#define DITSERVE_CORE_DEVICES_MULTIVERSION_H_

// Of a function whose loops are written so that the compiler vectorizes them: once for each of these instruction sets;
// the processor's own is chosen at run time. (The choice runs before a sanitizer is set up, and clang 14 has no
// clones.)
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define DITSERVE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DITSERVE_MULTIVERSION
#endif

#endif  // DITSERVE_CORE_DEVICES_MULTIVERSION_H_
