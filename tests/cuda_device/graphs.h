// Captures and graphs.
#pragma once

#include "streams.h"

namespace cuda_device {

using UserObject = std::shared_ptr<void>;  // its deleter is the callback

struct Capture {
  uint64_t id;
  cudaStreamCaptureMode mode;
  uint64_t thread;
  CUstream_st* origin;
  CUgraph_st* graph;
  bool invalid = false;
  Accesses accesses = {};
};

bool is_live(const Capture* capture);  // has not ended
cudaError_t join(CUstream_st& stream, Capture* capture);
cudaError_t invalidate(Capture& capture, cudaError_t error, const char* why);

// cudaSuccess, or why this thread may not wait now: it or another one captures.
cudaError_t may_synchronise(const char* call, CUstream_st* stream = nullptr);

}  // namespace cuda_device

struct CUgraph_st {
  std::vector<cuda_device::Work> nodes;  // in the order in which they were captured
  std::vector<cuda_device::UserObject> objects;
};
struct CUgraphExec_st : CUgraph_st {};
struct CUuserObject_st {
  cuda_device::UserObject object;
  unsigned references;
};
