#pragma once

#include <optional>
#include <vector>

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Returns tilings with one block for each tile, only those of `tile_channels` channels if given.
std::vector<Tiling> tilings_for(const Problem& problem, Kernel kernel, std::optional<int64_t> tile_channels);

// Whether divisions by multiplication are exact, and eight passes of a thread fit into 32-bit offsets.
bool is_countable(const Tiling& tiling);

// Contiguous bytes in a row of the narrowest tile.
int64_t run_bytes(const Tiling& tiling, DType dtype);

int64_t active_clusters(const Device& device, int cluster, int blocks_per_multiprocessor);

// Fills in traffic, floor_time and predicted_time.
void price(const Problem& problem, const Device& device, Plan& plan);

}  // namespace fused_bn::cuda
