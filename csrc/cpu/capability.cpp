// Selects the kernels of the widest instruction set that this processor supports.
#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace fused_bn::cpu {
namespace {

bool supports_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool supports_avx512() {
#if defined(__x86_64__)
  return supports_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool supports_avx512_bf16() {
#if defined(__x86_64__)
  return supports_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

struct Candidate {
  const Kernels* kernels;
  bool runs_here;
};

// Widest first.
std::vector<Candidate> candidates() {
  std::vector<Candidate> compiled;
  for (const Candidate& candidate :
       {Candidate{kernels_avx512_bf16(), supports_avx512_bf16()},
        Candidate{kernels_avx512(), supports_avx512()}, Candidate{kernels_avx2(), supports_avx2()},
        Candidate{kernels_default(), true}}) {
    if (candidate.kernels != nullptr) compiled.push_back(candidate);
  }
  return compiled;
}

const Kernels& choose() {
  const char* variable = std::getenv("FUSED_BN_CPU_CAPABILITY");
  const std::string wanted = variable == nullptr ? "" : variable;
  std::string usable;
  for (const Candidate& candidate : candidates()) {
    if (!candidate.runs_here) continue;
    if (wanted.empty() || wanted == candidate.kernels->capability) return *candidate.kernels;
    usable += (usable.empty() ? "" : ", ") + std::string(candidate.kernels->capability);
  }
  throw std::runtime_error("FUSED_BN_CPU_CAPABILITY is '" + wanted + "', but this build and processor have " +
                           usable);
}

}  // namespace

const Kernels& active_kernels() {
  static const Kernels& kernels = choose();
  return kernels;
}

std::vector<std::string> compiled_capabilities() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) names.emplace_back(candidate.kernels->capability);
  return names;
}

std::string active_capability() { return active_kernels().capability; }

}  // namespace fused_bn::cpu
