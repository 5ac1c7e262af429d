// Streams and events.
//
// CUDA_DEVICE_ORDER says when work runs. late: when somebody waits for it. now: in the call that queues it. A
// number: as late, and after each call a few steps of any streams, drawn with that seed.
#include "streams.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>

namespace cuda_device {
namespace {

std::set<CUstream_st*>& streams = *new std::set<CUstream_st*>;
Accesses& accesses = *new Accesses;
Clock& host_clock = *new Clock;
uint64_t tickets = 0, stream_ids = 0;
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

// A handle comes back when all work of the stream that was destroyed is done, and so does not overtake it.
CUstream_st* new_stream(int device, int priority) {
  const auto is_free = [](const CUstream_st* each) { return each->destroyed && each->queue.empty(); };
  const auto found = std::find_if(streams.begin(), streams.end(), is_free);
  if (found == streams.end()) {
    return *streams.insert(new CUstream_st{device, ++stream_ids, priority}).first;
  }
  const Clock clock = (*found)->clock;
  (*found)->~CUstream_st();
  return new (*found) CUstream_st{device, ++stream_ids, priority, {}, clock};
}

void run_kernels(const KernelLaunch& first, const KernelLaunch* second) {
  const auto first_kernel = first.prepare();
  if (second == nullptr) return simt::launch(first.launch, first_kernel);
  simt::launch(first.launch, first_kernel, second->launch, second->prepare());
}

void step(CUstream_st& stream);

void run_until_reached(const EventState& event, uint64_t ticket) {
  while (event.done < ticket) {
    if (event.stream->queue.empty()) {
      std::fprintf(stderr, "CUDA DEVICE: a wait for an event that nobody will record\n");
      std::abort();
    }
    step(*event.stream);
  }
}

void step(CUstream_st& stream) {
  Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (work.awaited != nullptr) return run_until_reached(*work.awaited, work.ticket);
  Work dependent;
  const bool takes_dependent = work.kernel != nullptr && !work.kernel->programmatic && !stream.queue.empty();
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

cudaError_t error_of_work() {
  if (!work_failed) return cudaSuccess;
  work_failed = false;
  return fail(cudaErrorIllegalAddress, "work failed");
}

void note(Accesses& all, CUstream_st& stream, const std::string& name, const std::vector<Access>& made) {
  if (made.empty()) return;
  static auto& names = *new std::set<std::string>;
  merge(stream.clock, host_clock);
  const Stamp stamp{stream.id, ++stream.clock[stream.id], names.insert(name).first->c_str()};
  for (Access access : made) {
    if (access.bytes == 0 || !is_device_address(access.begin)) continue;
    access.begin = host_address(access.begin);
    const Stamp* earlier = all.add(access, stamp, stream.clock);
    if (earlier == nullptr) continue;
    return report("race: " + name + " of stream " + std::to_string(stream.id) +
                  (access.writes ? " writes" : " reads") + " what " + earlier->work + " of stream " +
                  std::to_string(earlier->stream) + " accesses, and neither waits for the other");
  }
}

double milliseconds_now() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

CUstream_st& stream_of(cudaStream_t stream) {
  static std::array<CUstream_st*, 64> defaults{};
  if (stream != nullptr && stream != cudaStreamLegacy && stream != cudaStreamPerThread) return *stream;
  CUstream_st*& found = defaults.at(static_cast<size_t>(current_device()));
  if (found == nullptr) found = new_stream(current_device(), 0);
  return *found;
}

void run(CUstream_st& stream) {
  while (!stream.queue.empty()) step(stream);
}
void run_all() {
  for (CUstream_st* stream : std::set<CUstream_st*>(streams)) {
    run(*stream);
    host_has_waited_for(stream->clock);
  }
}

void enqueue(CUstream_st& stream, Work work) {
  if (stream.capture != nullptr) {
    note(stream.capture->accesses, stream, work.name, work.accesses);
    if (work.awaited == nullptr) stream.capture->graph->nodes.push_back(std::move(work));
    return;
  }
  note(accesses, stream, work.name, work.accesses);
  const bool held_back = work.kernel != nullptr && work.kernel->has_dependent;
  stream.queue.push_back(std::move(work));
  if (order() == Order::now && !held_back) run(stream);
  if (order() != Order::random) return;
  std::vector<CUstream_st*> busy;
  for (uint64_t steps = random_number() % 4; steps > 0; --steps) {
    busy.clear();
    const auto has_work = [](const CUstream_st* each) { return !each->queue.empty(); };
    std::copy_if(streams.begin(), streams.end(), std::back_inserter(busy), has_work);
    if (!busy.empty()) step(*busy[random_number() % busy.size()]);
  }
}

void note_accesses(CUstream_st& stream, const std::string& work, const std::vector<Access>& made) {
  note(stream.capture == nullptr ? accesses : stream.capture->accesses, stream, work, made);
}
void host_has_waited_for(const Clock& clock) { merge(host_clock, clock); }
void forget_accesses(uintptr_t host_address, size_t bytes) { accesses.forget(host_address, bytes); }

void report(const std::string& what) {
  std::fprintf(stderr, "CUDA DEVICE: %s\n", what.c_str());
  work_failed = true;
}

void leave_capture(const Capture* capture) {
  for (CUstream_st* stream : streams) {
    if (stream->capture != capture) continue;
    stream->capture = nullptr;
    stream->began_capture = false;
  }
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
  if (streams.count(stream) == 0 || stream->destroyed) {
    return fail(cudaErrorInvalidResourceHandle, "cudaStreamDestroy");
  }
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
  if (const cudaError_t error = may_synchronise("cudaStreamQuery", &stream); error != cudaSuccess)
    return error;
  if (!stream.queue.empty()) return cudaErrorNotReady;
  host_has_waited_for(stream.clock);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const Lock lock(runtime_mutex);
  CUstream_st& stream = stream_of(handle);
  const cudaError_t error = may_synchronise("cudaStreamSynchronize", &stream);
  if (error != cudaSuccess) return error;
  run(stream);
  host_has_waited_for(stream.clock);
  return error_of_work();
}
cudaError_t cudaDeviceSynchronize() {
  const Lock lock(runtime_mutex);
  const cudaError_t error = may_synchronise("cudaDeviceSynchronize");
  if (error != cudaSuccess) return error;
  for (CUstream_st* stream : std::set<CUstream_st*>(streams)) {
    if (stream->device != current_device()) continue;
    run(*stream);
    host_has_waited_for(stream->clock);
  }
  return error_of_work();
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  const Lock lock(runtime_mutex);
  enqueue(stream_of(stream), {"host function", [=] { function(data); }});
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st{current_device(), std::make_shared<EventState>()};
  (*event)->state->timed = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock(runtime_mutex);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned) {
  const Lock lock(runtime_mutex);
  CUstream_st& stream = stream_of(handle);
  if (event->device != stream.device) {
    return fail(cudaErrorInvalidResourceHandle, "an event of device %d recorded on device %d", event->device,
                stream.device);
  }
  const auto state = event->state;
  state->capture = stream.capture;
  state->stream = &stream;
  merge(stream.clock, host_clock);
  state->clock = stream.clock;
  if (stream.capture != nullptr) return cudaSuccess;
  state->recorded = ++tickets;
  enqueue(stream, {"event", [state, ticket = tickets] {
                     state->done = std::max(state->done, ticket);
                     state->milliseconds = milliseconds_now();
                   }});
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  const Lock lock(runtime_mutex);
  CUstream_st& stream = stream_of(handle);
  const EventState& state = *event->state;
  if (is_live(state.capture)) {
    stream.capture = state.capture;  // it joins
  } else if (stream.capture != nullptr && state.recorded > state.done) {
    stream.capture->invalid = true;
    return fail(cudaErrorStreamCaptureIsolation, "a capture waits for work outside of it");
  } else if (state.recorded != 0) {
    Work work{"wait"};
    work.awaited = event->state;
    work.ticket = state.recorded;
    enqueue(stream, std::move(work));
  }
  merge(stream.clock, state.clock);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(runtime_mutex);
  if (is_live(event->state->capture)) return fail(cudaErrorCapturedEvent, "cudaEventQuery");
  if (const cudaError_t error = may_synchronise("cudaEventQuery"); error != cudaSuccess) return error;
  if (event->state->done < event->state->recorded) return cudaErrorNotReady;
  host_has_waited_for(event->state->clock);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(runtime_mutex);
  if (const cudaError_t error = may_synchronise("cudaEventSynchronize"); error != cudaSuccess) return error;
  run_until_reached(*event->state, event->state->recorded);
  host_has_waited_for(event->state->clock);
  return error_of_work();
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const Lock lock(runtime_mutex);
  for (const cudaEvent_t each : {from, to}) {
    if (!each->state->timed || each->state->recorded == 0) {
      return fail(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime");
    }
    if (each->state->done < each->state->recorded) return cudaErrorNotReady;
  }
  *milliseconds = static_cast<float>(to->state->milliseconds - from->state->milliseconds);
  return cudaSuccess;
}

// ---- for ATen's operators, which run on the host in the call that makes them
EXPORTED void cuda_device_run(cudaStream_t stream) {
  const Lock lock(runtime_mutex);
  run(stream_of(stream));
}
EXPORTED void cuda_device_enqueue(cudaStream_t stream, const char* name, const std::function<void()>& work) {
  const Lock lock(runtime_mutex);
  enqueue(stream_of(stream), {name, work});
}
EXPORTED void cuda_device_note_access(cudaStream_t stream, const char* name, const void* begin, size_t bytes,
                                      bool writes) {
  const Lock lock(runtime_mutex);
  note_accesses(stream_of(stream), name, {{begin, bytes, writes}});
}
