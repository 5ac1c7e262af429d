// NCCL between processes of this machine: the collectives of ProcessGroupNCCL, through shared memory.
//
// A collective is work of its stream, as any other: it waits for the other processes when it runs.
#pragma GCC visibility push(default)
#include <nccl.h>
#pragma GCC visibility pop

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "streams.h"

namespace {

constexpr size_t kSlotBytes = 1 << 20;  // of a process; larger messages go in pieces
constexpr auto kPatience = std::chrono::seconds(60);

}  // namespace

struct ncclComm {
  int rank, size, device;
  char* shared;           // the number of arrivals in 64 bytes, then a slot for each process
  uint64_t meetings = 0;  // in which this process took part
  std::atomic<bool> aborted{false};
  std::shared_ptr<cuda_device::EventRecord> last;  // of the collective that was issued last

  char* slot(int of) const { return shared + 64 + kSlotBytes * static_cast<size_t>(of); }

  // Returns when all processes have come here as often.
  void meet() {
    auto& arrivals = *reinterpret_cast<std::atomic<uint64_t>*>(shared);
    const uint64_t expected = ++meetings * static_cast<uint64_t>(size);
    ++arrivals;
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (arrivals < expected) {
      if (aborted) throw std::runtime_error("the communicator was aborted");
      if (std::chrono::steady_clock::now() > deadline)
        throw std::runtime_error("another process did not come");
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }
};

namespace {

using namespace cuda_device;

size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    default:
      return 8;
  }
}

// Calls body(a value of that type); false where reductions of it are not emulated.
template <class Body>
bool with_type(ncclDataType_t type, Body body) {
  switch (type) {
    case ncclUint8:
      return body(uint8_t{}), true;
    case ncclInt32:
      return body(int32_t{}), true;
    case ncclInt64:
      return body(int64_t{}), true;
    case ncclFloat32:
      return body(float{}), true;
    case ncclFloat64:
      return body(double{}), true;
    default:
      return false;
  }
}

// into[i] = the reduction of all slots' values, in the order of the ranks.
template <class T>
void reduce(const ncclComm& comm, T* into, size_t count, ncclRedOp_t op) {
  for (size_t i = 0; i < count; ++i) {
    T sum = reinterpret_cast<const T*>(comm.slot(0))[i];
    for (int rank = 1; rank < comm.size; ++rank) {
      const T value = reinterpret_cast<const T*>(comm.slot(rank))[i];
      sum = op == ncclMax ? std::max(sum, value) : op == ncclMin ? std::min(sum, value) : T(sum + value);
    }
    into[i] = op == ncclAvg ? T(sum / static_cast<T>(comm.size)) : sum;
  }
}

// Puts pieces of what is sent into this process's slot, and calls take(begin, bytes) when all slots are full.
template <class Take>
void exchange(ncclComm& comm, const void* send, size_t bytes, Take take) {
  for (size_t begin = 0; begin < bytes; begin += kSlotBytes) {
    const size_t piece = std::min(kSlotBytes, bytes - begin);
    if (send != nullptr) std::memcpy(comm.slot(comm.rank), static_cast<const char*>(send) + begin, piece);
    comm.meet();
    take(begin, piece);
    comm.meet();
  }
}

struct Buffers {
  const void* send;
  size_t send_bytes;
  void* receive;
  size_t receive_bytes;
};

// Collectives of a communicator run in the order in which they are issued, whatever their streams.
cudaError_t enqueue_in_order(ncclComm& comm, CUstream_st& stream, Work work) {
  if (stream.capture != nullptr) return enqueue(stream, std::move(work));
  if (comm.last != nullptr) {
    Work wait{"wait"};
    wait.awaited = comm.last;
    enqueue(stream, std::move(wait));
  }
  enqueue(stream, std::move(work));
  comm.last = std::make_shared<EventRecord>();
  *comm.last = {&stream, {}, nullptr};
  return enqueue(stream, {"event", [record = comm.last] { record->done = true; }});
}

// run(send, receive) on the host's addresses, as work of the stream.
template <class Run>
ncclResult_t enqueue_collective(const char* name, ncclComm_t comm, Buffers b, cudaStream_t stream, Run run) {
  const Lock lock(runtime_mutex);
  CUstream_st& s = stream_of(stream);
  if (s.device != comm->device || s.device != current_device()) {
    fail(cudaErrorInvalidResourceHandle, "%s on a stream of device %d", name, s.device);
    return ncclInvalidUsage;
  }
  const auto on_device = [&](const void* p, size_t bytes) {
    return bytes == 0 || (device_of(p) == comm->device && bytes_behind(p) >= static_cast<int64_t>(bytes));
  };
  if (!on_device(b.send, b.send_bytes) || !on_device(b.receive, b.receive_bytes)) {
    fail(cudaErrorInvalidValue, "%s from %p to %p", name, b.send, b.receive);
    return ncclInvalidArgument;
  }
  Work work{name, [=] { run(host_address(b.send), static_cast<char*>(host_address(b.receive))); }};
  work.accesses = {{b.send, b.send_bytes, false}, {b.receive, b.receive_bytes, true}};
  return enqueue_in_order(*comm, s, std::move(work)) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclSuccess ? "success" : "error of the emulated NCCL";
}
const char* ncclGetLastError(ncclComm_t) { return "see CUDA_DEVICE_LOG=1"; }
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  const std::string name = "/cuda_device-" + std::to_string(getpid()) + "-" + std::to_string(random());
  *id = {};
  std::copy(name.begin(), name.end(), id->internal);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
  const size_t bytes = 64 + kSlotBytes * static_cast<size_t>(size);
  const int file = shm_open(id.internal, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) return ncclSystemError;
  void* shared = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (shared == MAP_FAILED) return ncclSystemError;
  *comm = new ncclComm{rank, size, current_device(), static_cast<char*>(shared)};
  try {
    (*comm)->meet();
  } catch (const std::runtime_error&) {
    return ncclSystemError;
  }
  shm_unlink(id.internal);  // the second to do so finds nothing
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t*) {
  return ncclCommInitRank(comm, size, id, rank);
}
ncclResult_t ncclCommInitRankScalable(ncclComm_t* comm, int size, int rank, int, ncclUniqueId* ids,
                                      ncclConfig_t*) {
  return ncclCommInitRank(comm, size, ids[0], rank);
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t) { return ncclSuccess; }  // queued work may name it
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  *error = ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  *count = comm->size;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
  *rank = comm->rank;
  return ncclSuccess;
}
// A collective runs when its stream comes to it: a group of them needs nothing more.
ncclResult_t ncclGroupStart() { return ncclSuccess; }
ncclResult_t ncclGroupEnd() { return ncclSuccess; }

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  if (!with_type(type, [](auto) {}) || op == ncclProd || op > ncclAvg) return ncclInvalidArgument;
  const size_t bytes = count * size_of(type);
  const auto run = [=](const void* from, char* to) {
    with_type(type, [&](auto zero) {
      using T = decltype(zero);
      exchange(*comm, from, bytes, [&](size_t begin, size_t piece) {
        reduce(*comm, reinterpret_cast<T*>(to + begin), piece / sizeof(T), op);
      });
    });
  };
  return enqueue_collective("ncclAllReduce", comm, {send, bytes, receive, bytes}, stream, run);
}
ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * size_of(type);
  const bool sends = comm->rank == root;
  const auto run = [=](const void* from, char* to) {
    exchange(*comm, sends ? from : nullptr, bytes,
             [&](size_t begin, size_t piece) { std::memcpy(to + begin, comm->slot(root), piece); });
  };
  return enqueue_collective("ncclBroadcast", comm, {send, sends ? bytes : 0, receive, bytes}, stream, run);
}
ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * size_of(type);
  const auto run = [=](const void* from, char* to) {
    exchange(*comm, from, bytes, [&](size_t begin, size_t piece) {
      for (int rank = 0; rank < comm->size; ++rank) {
        std::memcpy(to + static_cast<size_t>(rank) * bytes + begin, comm->slot(rank), piece);
      }
    });
  };
  const size_t all_bytes = bytes * static_cast<size_t>(comm->size);
  return enqueue_collective("ncclAllGather", comm, {send, bytes, receive, all_bytes}, stream, run);
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (!with_type(type, [](auto) {}) || op == ncclProd || op > ncclAvg) return ncclInvalidArgument;
  const size_t bytes = count * size_of(type), all_bytes = bytes * static_cast<size_t>(comm->size);
  const auto run = [=](const void* from, char* to) {
    with_type(type, [&](auto zero) {
      using T = decltype(zero);
      for (int part = 0; part < comm->size; ++part) {
        const char* piece_of = static_cast<const char*>(from) + static_cast<size_t>(part) * bytes;
        exchange(*comm, piece_of, bytes, [&](size_t begin, size_t piece) {
          if (part == comm->rank) reduce(*comm, reinterpret_cast<T*>(to + begin), piece / sizeof(T), op);
        });
      }
    });
  };
  return enqueue_collective("ncclReduceScatter", comm, {send, all_bytes, receive, bytes}, stream, run);
}
