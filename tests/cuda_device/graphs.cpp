// Captures, and the graphs that come of them: lists of work, in the order in which it was captured.
#include "graphs.h"

#include <algorithm>
#include <functional>
#include <set>
#include <thread>

namespace cuda_device {
namespace {

std::set<Capture*>& captures = *new std::set<Capture*>;
uint64_t capture_ids = 0;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

uint64_t this_thread() { return std::hash<std::thread::id>{}(std::this_thread::get_id()); }

// Whether a call that waits, made by this thread, is what the programming guide calls potentially unsafe.
bool is_unsafe(const Capture& capture) {
  if (thread_mode == cudaStreamCaptureModeRelaxed || capture.mode == cudaStreamCaptureModeRelaxed)
    return false;
  if (capture.thread == this_thread()) return true;
  return capture.mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
}

// All streams leave it. Whether the origin had waited for each of them.
bool leave(const Capture& capture) {
  bool joined = true;
  const Clock seen = capture.origin->clock;
  for (CUstream_st* stream : all_streams()) {
    if (stream->capture != &capture) continue;
    joined &= Stamp{stream->id, stream->clock[stream->id]}.before(seen);
    stream->clock = stream->clock_before_capture;
    stream->capture = nullptr;
  }
  return joined;
}

}  // namespace

bool is_live(const Capture* capture) { return captures.count(const_cast<Capture*>(capture)) != 0; }

cudaError_t invalidate(Capture& capture, cudaError_t error, const char* why) {
  capture.invalid = true;
  return fail(error, "a capture ends: %s", why);
}

cudaError_t join(CUstream_st& stream, Capture* capture) {
  if (stream.capture == capture) return cudaSuccess;
  if (stream.capture != nullptr) {
    invalidate(*capture, cudaErrorStreamCaptureMerge, "it meets another");
    return invalidate(*stream.capture, cudaErrorStreamCaptureMerge, "it meets another");
  }
  stream.capture = capture;
  stream.clock_before_capture = stream.clock;
  return cudaSuccess;
}

cudaError_t may_synchronise(const char* call, CUstream_st* stream) {
  if (stream != nullptr && stream->capture != nullptr) {
    return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported, call);
  }
  cudaError_t error = cudaSuccess;
  for (Capture* capture : captures) {
    if (is_unsafe(*capture)) error = invalidate(*capture, cudaErrorStreamCaptureUnsupported, call);
  }
  return error;
}

}  // namespace cuda_device

using namespace cuda_device;

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(runtime_mutex);
  if (stream == nullptr) return fail(cudaErrorStreamCaptureUnsupported, "a capture of the legacy stream");
  if (stream->capture != nullptr) return fail(cudaErrorIllegalState, "the stream is being captured");
  auto* const capture = new Capture{++capture_ids, mode, this_thread(), stream, new CUgraph_st};
  captures.insert(capture);
  return join(*stream, capture);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(runtime_mutex);
  Capture* const capture = stream->capture;
  *graph = nullptr;
  if (capture == nullptr || capture->origin != stream) {
    return fail(cudaErrorIllegalState, "the stream began no capture");
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != this_thread()) {
    return invalidate(*capture, cudaErrorStreamCaptureWrongThread, "in another thread than it began");
  }
  const bool joined = leave(*capture);
  captures.erase(capture);  // not freed: events may name it
  if (!capture->invalid && joined) {
    *graph = capture->graph;
    return cudaSuccess;
  }
  delete capture->graph;
  const auto error = capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined;
  return fail(error, "cudaStreamEndCapture");
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock lock(runtime_mutex);
  const Capture* capture = stream_of(stream).capture;
  *status = capture == nullptr ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  const Lock lock(runtime_mutex);
  const Capture* capture = stream_of(stream).capture;
  if (id != nullptr) *id = capture == nullptr ? 0 : capture->id;
  if (graph != nullptr) *graph = capture == nullptr ? nullptr : capture->graph;
  if (nodes != nullptr) *nodes = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  const Lock lock(runtime_mutex);
  *executable = new CUgraphExec_st{*graph};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long flags) {
  return cudaGraphInstantiate(executable, graph, flags);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(runtime_mutex);
  for (const Work& node : executable->nodes) {
    if (const cudaError_t error = enqueue(stream_of(stream), node); error != cudaSuccess) return error;
  }
  // What the graph keeps lives until this replay is over.
  return enqueue(stream_of(stream), {"end of a graph", [kept = executable->objects] {}});
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock(runtime_mutex);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(runtime_mutex);
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphDebugDotPrint(cudaGraph_t, const char*, unsigned) { return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  const Lock lock(runtime_mutex);
  for (size_t i = 0; nodes != nullptr && i < std::min(*count, graph->nodes.size()); ++i) {
    nodes[i] = reinterpret_cast<cudaGraphNode_t>(&graph->nodes[i]);
  }
  *count = graph->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  const std::string& name = reinterpret_cast<const Work*>(node)->name;
  *type = name == "copy"            ? cudaGraphNodeTypeMemcpy
          : name == "memset"        ? cudaGraphNodeTypeMemset
          : name == "host function" ? cudaGraphNodeTypeHost
                                    : cudaGraphNodeTypeKernel;
  return cudaSuccess;
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* data, cudaHostFn_t destroy,
                                 unsigned references, unsigned flags) {
  if (references == 0 || flags != cudaUserObjectNoDestructorSync) {
    return fail(cudaErrorInvalidValue, "cudaUserObjectCreate: %u references, flags %u", references, flags);
  }
  *object = new CUuserObject_st{UserObject(data, destroy), references};
  return cudaSuccess;
}
cudaError_t cudaUserObjectRetain(cudaUserObject_t object, unsigned count) {
  const Lock lock(runtime_mutex);
  object->references += count;
  return cudaSuccess;
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  const Lock lock(runtime_mutex);
  if (count > object->references) return fail(cudaErrorInvalidValue, "cudaUserObjectRelease(%u)", count);
  object->references -= count;
  if (object->references == 0) delete object;
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count,
                                      unsigned flags) {
  const Lock lock(runtime_mutex);
  if (graph == nullptr || object == nullptr || count == 0) {
    return fail(cudaErrorInvalidValue, "cudaGraphRetainUserObject(%u)", count);
  }
  graph->objects.push_back(object->object);
  return flags == cudaGraphUserObjectMove ? cudaUserObjectRelease(object, count) : cudaSuccess;
}

// For ATen's operators: while a stream is captured they are recorded.
EXPORTED int cuda_device_is_capturing(cudaStream_t stream) {
  const Lock lock(runtime_mutex);
  return stream_of(stream).capture != nullptr;
}
