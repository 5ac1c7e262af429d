// Streams, and when their work runs.
//
// CUDA_DEVICE_ORDER is
//   late      Work runs when the host waits for it. This is the default.
//   now       Work runs in the call that queues it.
//   a number  As late, but each queueing call also runs up to three steps of streams drawn at random. The
//             number is the seed.
#include "streams.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>

#include "graphs.h"

namespace cuda_device {
namespace {

std::vector<CUstream_st*>& streams = *new std::vector<CUstream_st*>;
Accesses& accesses = *new Accesses;
Clock& host_clock = *new Clock;
uint64_t stream_ids = 0;
bool work_failed = false;

enum class Order { late, now, random };
uint64_t random_state = 0;

Order order() {
  static const Order one = [] {
    const char* text = std::getenv("CUDA_DEVICE_ORDER");
    if (text == nullptr || std::strcmp(text, "late") == 0) return Order::late;
    if (std::strcmp(text, "now") == 0) return Order::now;
    random_state = static_cast<uint64_t>(std::atoll(text));
    return Order::random;
  }();
  return one;
}

uint64_t random_number() {  // splitmix64, S. Vigna
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

bool has_work(const CUstream_st* stream) { return !stream->queue.empty(); }

void random_steps() {
  std::vector<CUstream_st*> busy;
  for (uint64_t steps = random_number() % 4; steps > 0; --steps) {
    busy.clear();
    std::copy_if(streams.begin(), streams.end(), std::back_inserter(busy), has_work);
    if (!busy.empty()) step(*busy[random_number() % busy.size()]);
  }
}

// Returns a new stream. Reuses the handle of a destroyed stream once that stream's work is done, so that new
// work does not overtake it.
CUstream_st* new_stream(int device, int priority) {
  const auto is_free = [](const CUstream_st* each) { return each->destroyed && !has_work(each); };
  const auto found = std::find_if(streams.begin(), streams.end(), is_free);
  CUstream_st* stream = nullptr;
  Clock clock;
  if (found == streams.end()) {
    stream = static_cast<CUstream_st*>(operator new(sizeof(CUstream_st)));
  } else {
    stream = *found;
    clock = stream->clock;
    stream->~CUstream_st();
    streams.erase(found);
  }
  streams.push_back(new (stream) CUstream_st{device, ++stream_ids, priority, {}, clock});
  return stream;
}

void run_kernels(const KernelLaunch& first, const KernelLaunch* second) {
  const auto first_kernel = first.prepare();
  if (second == nullptr) return simt::launch(first.launch, first_kernel);
  simt::launch(first.launch, first_kernel, second->launch, second->prepare());
}

void check_races(Accesses& all, CUstream_st& stream, const std::string& name,
                 const std::vector<Access>& made) {
  static auto& names = *new std::set<std::string>;
  Clock& clock = clock_of_next_work(stream);
  const Stamp stamp{stream.id, ++clock[stream.id], names.insert(name).first->c_str()};
  for (Access access : made) {
    if (access.bytes == 0 || !is_device_address(access.begin)) continue;
    access.begin = host_address(access.begin);
    const Stamp* earlier = all.add(access, stamp, clock);
    if (earlier == nullptr) continue;
    return report("race: " + name + " of stream " + std::to_string(stream.id) +
                  (access.writes ? " writes" : " reads") + " what " + earlier->work + " of stream " +
                  std::to_string(earlier->stream) + " accesses, and neither waits for the other");
  }
}

}  // namespace

CUstream_st& stream_of(cudaStream_t stream) {
  static std::array<CUstream_st*, 64> defaults{};
  if (stream != nullptr && stream != cudaStreamLegacy && stream != cudaStreamPerThread) return *stream;
  CUstream_st*& found = defaults.at(static_cast<size_t>(current_device()));
  if (found == nullptr) found = new_stream(current_device(), 0);
  return *found;
}
const std::vector<CUstream_st*>& all_streams() { return streams; }

void step(CUstream_st& stream) {
  Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (work.awaited != nullptr) return run_until_done(*work.awaited);
  Work dependent;
  const bool takes_dependent = work.kernel != nullptr && !work.kernel->programmatic && has_work(&stream);
  if (takes_dependent && stream.queue.front().kernel && stream.queue.front().kernel->programmatic) {
    dependent = std::move(stream.queue.front());
    stream.queue.pop_front();
  }
  const int before = current_device();
  set_current_device(stream.device);
  try {
    if (work.kernel != nullptr) {
      run_kernels(*work.kernel, dependent.kernel.get());
    } else {
      work.run();
    }
  } catch (const std::exception& error) {
    report(work.name + (dependent.kernel ? ", " + dependent.name : "") + ": " + error.what());
  }
  set_current_device(before);
}
void run(CUstream_st& stream) {
  while (has_work(&stream)) step(stream);
}
void run_until_done(const EventRecord& record) {
  while (!record.done) {
    if (!has_work(record.stream)) {
      std::fprintf(stderr, "CUDA DEVICE: a wait for an event that nobody will record\n");
      std::abort();
    }
    step(*record.stream);
  }
}

cudaError_t wait_for(CUstream_st& stream) {
  run(stream);
  host_has_waited_for(stream.clock);
  return reported_error();
}
void wait_for_device(int device) {
  for (CUstream_st* stream : std::vector<CUstream_st*>(streams)) {
    if (device >= 0 && stream->device != device) continue;
    run(*stream);
    if (stream->capture == nullptr) host_has_waited_for(stream->clock);
  }
}

cudaError_t enqueue(CUstream_st& stream, Work work) {
  if (stream.capture != nullptr) {
    Capture& capture = *stream.capture;
    if (capture.invalid) return fail(cudaErrorStreamCaptureInvalidated, "%s", work.name.c_str());
    check_races(capture.accesses, stream, work.name, work.accesses);
    capture.graph->nodes.push_back(std::move(work));
    return cudaSuccess;
  }
  check_races(accesses, stream, work.name, work.accesses);
  const bool held_back = work.kernel != nullptr && work.kernel->has_dependent;
  stream.queue.push_back(std::move(work));
  if (order() == Order::now && !held_back) run(stream);
  if (order() == Order::random) random_steps();
  return cudaSuccess;
}

void note_accesses(CUstream_st& stream, const std::string& work, const std::vector<Access>& made) {
  check_races(stream.capture == nullptr ? accesses : stream.capture->accesses, stream, work, made);
}
void forget_accesses(uintptr_t host_address, size_t bytes) { accesses.forget(host_address, bytes); }
void host_has_waited_for(const Clock& clock) { merge(host_clock, clock); }
Clock& clock_of_next_work(CUstream_st& stream) {
  merge(stream.clock, host_clock);
  return stream.clock;
}

void report(const std::string& what) {
  std::fprintf(stderr, "CUDA DEVICE: %s\n", what.c_str());
  work_failed = true;
}
cudaError_t reported_error() {
  if (!work_failed) return cudaSuccess;
  work_failed = false;
  return fail(cudaErrorIllegalAddress, "work failed");
}

}  // namespace cuda_device

using namespace cuda_device;

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  const Lock lock(runtime_mutex);
  *stream = new_stream(current_device(), priority);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(runtime_mutex);
  const bool known = std::find(streams.begin(), streams.end(), stream) != streams.end();
  if (!known || stream->destroyed) return fail(cudaErrorInvalidResourceHandle, "cudaStreamDestroy");
  stream->destroyed = true;  // what is queued still runs
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = stream_of(stream).priority;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  const Lock lock(runtime_mutex);
  CUstream_st& stream = stream_of(handle);
  const cudaError_t error = may_synchronise("cudaStreamQuery", &stream);
  if (error != cudaSuccess) return error;
  if (!has_work(&stream)) {
    host_has_waited_for(stream.clock);
    return cudaSuccess;
  }
  step(stream);  // makes progress, so that a loop of queries ends
  return cudaErrorNotReady;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const Lock lock(runtime_mutex);
  CUstream_st& stream = stream_of(handle);
  const cudaError_t error = may_synchronise("cudaStreamSynchronize", &stream);
  return error == cudaSuccess ? wait_for(stream) : error;
}
cudaError_t cudaDeviceSynchronize() {
  const Lock lock(runtime_mutex);
  const cudaError_t error = may_synchronise("cudaDeviceSynchronize");
  if (error != cudaSuccess) return error;
  wait_for_device(current_device());
  return reported_error();
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  const Lock lock(runtime_mutex);
  return enqueue(stream_of(stream), {"host function", [=] { function(data); }});
}

// ---- for ATen's operators, which run on the host in the call that makes them
EXPORTED void cuda_device_run(cudaStream_t stream) {
  const Lock lock(runtime_mutex);
  run(stream_of(stream));
}
EXPORTED cudaError_t cuda_device_enqueue(cudaStream_t stream, const char* name,
                                         const std::function<void()>& work,
                                         const std::vector<Access>& accesses) {
  const Lock lock(runtime_mutex);
  return enqueue(stream_of(stream), {name, work, nullptr, nullptr, accesses});
}
EXPORTED void cuda_device_note_accesses(cudaStream_t stream, const char* name,
                                        const std::vector<Access>& accesses) {
  const Lock lock(runtime_mutex);
  note_accesses(stream_of(stream), name, accesses);
}
