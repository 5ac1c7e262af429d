// Events. Each record is an object of its own: a wait keeps the record that it found.
#include <chrono>

#include "graphs.h"
#include "streams.h"

struct CUevent_st {
  int device;
  bool timed;
  std::shared_ptr<cuda_device::EventRecord> last;  // null before the first
};

namespace cuda_device {
namespace {

double milliseconds_now() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

bool is_captured(const CUevent_st& event) { return event.last != nullptr && is_live(event.last->capture); }

// Of a call that looks at the event from the host.
cudaError_t may_look(const CUevent_st& event, const char* call) {
  if (is_captured(event)) return fail(cudaErrorCapturedEvent, "%s", call);
  return may_synchronise(call);
}

}  // namespace
}  // namespace cuda_device

using namespace cuda_device;

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st{current_device(), (flags & cudaEventDisableTiming) == 0, nullptr};
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
  const auto record = std::make_shared<EventRecord>();
  *record = {&stream, clock_of_next_work(stream), stream.capture};
  event->last = record;
  if (stream.capture != nullptr) return cudaSuccess;
  return enqueue(stream, {"event", [record] {
                            record->done = true;
                            record->milliseconds = milliseconds_now();
                          }});
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  const Lock lock(runtime_mutex);
  CUstream_st& stream = stream_of(handle);
  if (event->last == nullptr) return cudaSuccess;
  if (is_captured(*event)) {
    const cudaError_t error = join(stream, event->last->capture);
    if (error != cudaSuccess) return error;
  } else if (stream.capture != nullptr) {
    return invalidate(*stream.capture, cudaErrorStreamCaptureIsolation, "a wait for work outside of it");
  } else {
    Work work{"wait"};
    work.awaited = event->last;
    const cudaError_t error = enqueue(stream, std::move(work));
    if (error != cudaSuccess) return error;
  }
  merge(stream.clock, event->last->clock);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(runtime_mutex);
  if (const cudaError_t error = may_look(*event, "cudaEventQuery"); error != cudaSuccess) return error;
  if (event->last == nullptr) return cudaSuccess;
  const auto record = event->last;
  if (!record->done) {
    step(*record->stream);  // makes progress, so that a loop of queries ends
    return cudaErrorNotReady;
  }
  host_has_waited_for(record->clock);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(runtime_mutex);
  if (const cudaError_t error = may_look(*event, "cudaEventSynchronize"); error != cudaSuccess) return error;
  if (event->last == nullptr) return cudaSuccess;
  const auto record = event->last;
  run_until_done(*record);
  host_has_waited_for(record->clock);
  return reported_error();
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const Lock lock(runtime_mutex);
  for (const cudaEvent_t each : {from, to}) {
    if (!each->timed || each->last == nullptr) {
      return fail(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime");
    }
    if (!each->last->done) return cudaErrorNotReady;
  }
  *milliseconds = static_cast<float>(to->last->milliseconds - from->last->milliseconds);
  return cudaSuccess;
}
