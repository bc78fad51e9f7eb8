/// Which instruction sets the kernels are compiled for; included before hwy/foreach_target.h. Every kernel
/// file is compiled once for each, so only those that pay: x86-64-v2 (SSE4), AVX2, AVX-512, and NEON on Arm.
#ifndef RWKVX_OPS_CPU_TARGETS_H_
#define RWKVX_OPS_CPU_TARGETS_H_

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

#endif
