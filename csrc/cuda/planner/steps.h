#pragma once

#include <optional>
#include <vector>

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tilings of one block a tile; of `tile_channels` alone where given. Empty where the kernel has none.
std::vector<Tiling> tilings_for(const Problem& problem, Kernel kernel, std::optional<int64_t> tile_channels);

// Whether divisions by multiplication are exact, and 8 steps of a thread fit into offsets of 32 bits.
bool is_countable(const Tiling& tiling);

// Bytes side by side, of a row of the narrowest tile.
int64_t run_bytes(const Tiling& tiling, DType dtype);

// Clusters of so many blocks that run at once, at so many blocks a multiprocessor.
int64_t active_clusters(const Device& device, int cluster, int blocks_per_multiprocessor);

// Fills in traffic, floor_time and predicted_time.
void price(const Problem& problem, const Device& device, Plan& plan);

}  // namespace fused_bn::cuda
