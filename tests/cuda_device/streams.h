// Streams and the work in them.
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

struct Capture;

// One record of an event. Whoever waits for the event waits for its last record at that time.
struct EventRecord {
  CUstream_st* stream;
  Clock clock;       // of the stream
  Capture* capture;  // null outside of any
  bool done = false;
  double milliseconds = 0;
};

// A launch of one of our kernels.
struct KernelLaunch {
  simt::Launch launch;
  // Checks the params and returns the kernel on a copy of them. Called when the work runs.
  std::function<std::function<void()>()> prepare;
  bool programmatic = false;   // may start before the kernel in front of it has ended
  bool has_dependent = false;  // a programmatic one comes next, in most cases
};

// Exactly one of run, kernel and awaited is set.
struct Work {
  std::string name;
  std::function<void()> run = nullptr;
  std::shared_ptr<KernelLaunch> kernel = nullptr;
  std::shared_ptr<EventRecord> awaited = nullptr;
  std::vector<Access> accesses = {};
};

CUstream_st& stream_of(cudaStream_t stream);  // the current device's default stream for null
// Captures the work or queues it, and runs what CUDA_DEVICE_ORDER says. An error where the stream's capture
// is invalid.
cudaError_t enqueue(CUstream_st& stream, Work work);
// Checks the accesses of work that runs now, at this point of the stream.
void note_accesses(CUstream_st& stream, const std::string& work, const std::vector<Access>& accesses);
void forget_accesses(uintptr_t host_address, size_t bytes);

void step(CUstream_st& stream);                  // runs the first work
void run(CUstream_st& stream);                   // runs all work
cudaError_t wait_for(CUstream_st& stream);       // the host does, and learns of errors
void wait_for_device(int device);                // -1: for all; errors are told later
void run_until_done(const EventRecord& record);  // runs what the record waits for
void host_has_waited_for(const Clock& clock);    // the host has seen that all this has happened
Clock& clock_of_next_work(CUstream_st& stream);  // behind all that the host has waited for

void report(const std::string& what);            // prints it; the next call that waits returns an error
cudaError_t reported_error();                    // of work that has run; told once
const std::vector<CUstream_st*>& all_streams();  // in the order in which they were created

}  // namespace cuda_device

struct CUstream_st {
  int device;
  uint64_t id;
  int priority;
  std::deque<cuda_device::Work> queue = {};
  cuda_device::Clock clock = {};
  cuda_device::Capture* capture = nullptr;
  cuda_device::Clock clock_before_capture = {};
  bool destroyed = false;
};
