// Begins the source of one instruction set, which defines FUSED_BN_VECTOR_BYTES, and FUSED_BN_TARGET for
// instructions beyond the compiler's target. end.h ends it.
//
// These headers come before the target is set: what they define must run on every processor.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/moments.h"
#include "cpu/kernels.h"

#if defined(__x86_64__) || !defined(FUSED_BN_TARGET)

#if defined(FUSED_BN_TARGET)
#define FUSED_BN_PRAGMA(text) FUSED_BN_PRAGMA_EXPANDED(text)
#define FUSED_BN_PRAGMA_EXPANDED(text) _Pragma(#text)
#if defined(__clang__)
FUSED_BN_PRAGMA(clang attribute push(__attribute__((target(FUSED_BN_TARGET))), apply_to = function))
#else
FUSED_BN_PRAGMA(GCC target(FUSED_BN_TARGET))
#endif
#endif

#include "cpu/dispatch.h"

#else

namespace fused_bn::cpu {
namespace {

// Other processors have no such kernels.
inline const Kernels* compiled_kernels(const char*) { return nullptr; }

}  // namespace
}  // namespace fused_bn::cpu

#endif
