// Streams, the work in them, events, and captures.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "executor.h"
#include "races.h"
#include "runtime.h"

namespace cuda_device {

struct EventState {
  uint64_t recorded = 0, done = 0;  // tickets: of the last record, and of the last one that was reached
  double milliseconds = 0;
  CUstream_st* stream = nullptr;
  struct Capture* capture = nullptr;
  bool timed = true;
  Clock clock;
};

// A launch of one of our kernels.
struct KernelLaunch {
  simt::Launch launch;
  // Checks the params and returns the kernel on a copy of them. Called when the work runs.
  std::function<std::function<void()>()> prepare;
  bool programmatic = false;   // may start before the kernel in front of it has ended
  bool has_dependent = false;  // a programmatic one comes next, in most cases
};

// One of run, kernel and awaited is there.
struct Work {
  std::string name;
  std::function<void()> run = nullptr;
  std::shared_ptr<KernelLaunch> kernel = nullptr;
  std::shared_ptr<EventState> awaited = nullptr;
  uint64_t ticket = 0;  // of what is awaited
  std::vector<Access> accesses = {};
};

using UserObject = std::shared_ptr<void>;  // its deleter is the callback

struct Capture {
  uint64_t id;
  cudaStreamCaptureMode mode;
  uint64_t thread;
  bool invalid = false;
  CUgraph_st* graph = nullptr;
  Accesses accesses = {};
};

CUstream_st& stream_of(cudaStream_t stream);  // the current device's default stream for null
// Captures the work or queues it, and runs what CUDA_DEVICE_ORDER says.
void enqueue(CUstream_st& stream, Work work);
// Notes what work that has no place in the queue accesses, at this point of the stream.
void note_accesses(CUstream_st& stream, const std::string& work, const std::vector<Access>& accesses);
void run(CUstream_st& stream);
void run_all();
// The caller has seen that all this has happened.
void host_has_waited_for(const Clock& clock);
void forget_accesses(uintptr_t host_address, size_t bytes);
void report(const std::string& what);        // prints it; the next call that waits returns an error
void leave_capture(const Capture* capture);  // all streams that are in it

// cudaSuccess, or why this thread may not wait now: it or another one captures.
cudaError_t may_synchronise(const char* call, CUstream_st* stream = nullptr);

bool is_live(const Capture* capture);  // has not ended

}  // namespace cuda_device

struct CUstream_st {
  int device;
  uint64_t id;
  int priority;
  std::deque<cuda_device::Work> queue = {};
  cuda_device::Clock clock = {};
  cuda_device::Capture* capture = nullptr;
  bool began_capture = false;
  bool destroyed = false;
};
struct CUevent_st {
  int device;
  std::shared_ptr<cuda_device::EventState> state;
};
struct CUgraph_st {
  std::vector<cuda_device::Work> nodes;  // in the order in which they were captured
  std::vector<cuda_device::UserObject> objects;
};
struct CUgraphExec_st : CUgraph_st {};
struct CUuserObject_st {
  cuda_device::UserObject object;
  unsigned references;
};
