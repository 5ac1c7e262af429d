// Captures, and the graphs that come of them: lists of work, in the order in which it was captured.
#include <algorithm>
#include <cstring>
#include <functional>
#include <set>
#include <thread>

#include "streams.h"

namespace cuda_device {
namespace {

std::set<Capture*>& captures = *new std::set<Capture*>;
uint64_t capture_ids = 0;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

uint64_t this_thread() { return std::hash<std::thread::id>{}(std::this_thread::get_id()); }

// What the programming guide calls a potentially unsafe API call.
bool is_unsafe(const Capture& capture) {
  if (thread_mode == cudaStreamCaptureModeRelaxed || capture.mode == cudaStreamCaptureModeRelaxed)
    return false;
  if (capture.thread == this_thread()) return true;
  return capture.mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
}

}  // namespace

bool is_live(const Capture* capture) { return captures.count(const_cast<Capture*>(capture)) != 0; }

cudaError_t may_synchronise(const char* call, CUstream_st* stream) {
  if (stream != nullptr && stream->capture != nullptr) {
    stream->capture->invalid = true;
    return fail(cudaErrorStreamCaptureUnsupported, "%s of a stream that is being captured", call);
  }
  const auto unsafe = [](const Capture* capture) { return is_unsafe(*capture); };
  const auto found = std::find_if(captures.begin(), captures.end(), unsafe);
  if (found == captures.end()) return cudaSuccess;
  (*found)->invalid = true;
  const char* who = (*found)->thread == this_thread() ? "this" : "another";
  return fail(cudaErrorStreamCaptureUnsupported, "%s while %s thread captures", call, who);
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
  stream->capture = new Capture{++capture_ids, mode, this_thread(), false, new CUgraph_st, {}};
  stream->began_capture = true;
  captures.insert(stream->capture);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(runtime_mutex);
  if (!stream->began_capture) return fail(cudaErrorIllegalState, "the stream began no capture");
  Capture* const capture = stream->capture;
  leave_capture(capture);
  captures.erase(capture);  // not freed: events may name it
  *graph = capture->invalid ? nullptr : capture->graph;
  if (!capture->invalid) return cudaSuccess;
  delete capture->graph;
  return fail(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture");
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
  for (const Work& node : executable->nodes) enqueue(stream_of(stream), node);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock(runtime_mutex);
  run_all();
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(runtime_mutex);
  run_all();
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
