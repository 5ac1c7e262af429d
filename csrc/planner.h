// The launch planner as Python calls it: enumerators by their names, a device by its fields.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <string>
#include <vector>

#include "cuda/planner/plan.h"

namespace fused_bn {

// std::invalid_argument for a name that is none.
cuda::Problem problem_from(int64_t N, int64_t C, int64_t S, const std::string& layout,
                           const std::string& dtype, const std::string& direction, bool residual,
                           int64_t alignment, const std::string& part, const std::string& activation);

// A model's name, or a dict of fields; those left out are the nearest model's of its architecture.
// std::invalid_argument for any other.
cuda::Device device_from(const pybind11::object& given);

const char* walk_name(cuda::Walk walk);

// Calls visit(name, member, least, most) for each fact of a Device but name and architecture.
template <class Visit>
void for_each_field(cuda::Device& d, const Visit& visit) {
  constexpr int64_t kMostShared = int64_t{1} << 24;
  visit("multiprocessors", d.multiprocessors, 1, 1024);
  visit("shared_per_block", d.shared_per_block, int64_t{48 * 1024}, kMostShared);
  visit("shared_per_multiprocessor", d.shared_per_multiprocessor, d.shared_per_block, kMostShared);
  visit("threads_per_multiprocessor", d.threads_per_multiprocessor, cuda::kThreads, 1 << 16);
  visit("l2_bytes", d.l2_bytes, int64_t{0}, int64_t{1} << 40);
  visit("max_cluster", d.max_cluster, 1, d.architecture < 90 ? 1 : 16);
  visit("active_clusters", d.active_clusters, 0, 1024);
  visit("cooperative", d.cooperative, false, true);
  visit("memory_bandwidth", d.memory_bandwidth, 1.0, 1e9);
  visit("l2_bandwidth", d.l2_bandwidth, 1.0, 1e9);
}

void bind_planner(pybind11::module_& module);

}  // namespace fused_bn
