// The ways to cut a tensor into slabs, of which the launch planner chooses.
#pragma once

#include <vector>

#include "cuda/plan.h"

namespace fused_bn::cuda {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
inline int compute_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }
// That a direction reads twice, and may keep on chip.
inline int tensors_read(Direction direction) { return direction == Direction::backward ? 2 : 1; }

// Geometries without group, groups and retained steps. Wide slabs first, none twice; each fits, with nothing
// retained, into this much shared memory.
std::vector<Geometry> slabs_for(const Problem& problem, int64_t shared_per_block);

}  // namespace fused_bn::cuda
