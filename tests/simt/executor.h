// Runs a kernel's source on the CPU, a fiber for each CUDA thread, and reports what a GPU would not: see
// launch().
//
// Fibers of a block take turns on one OS thread; they change places where they wait for each other and, by
// chance, at accesses to global memory. So values that happen to be right prove little about missing
// barriers: ThreadSanitizer, which is told about every fiber and every barrier, does. Weak memory and speed
// stay unseen.
#pragma once

#include <cstdint>
#include <functional>

namespace simt {

struct Launch {
  int64_t grid = 1;
  int threads = 32;          // of a block
  int cluster = 1;           // blocks
  bool cooperative = false;  // all blocks run at once
  int64_t shared_bytes = 0;  // of a block
  uint64_t seed = 0;         // of the order in which threads and blocks run; 0: by index, never interrupted
  int workers = 0;           // OS threads; 0: one for each processor. With 1 a seed repeats a run exactly.
};

// Runs `kernel` once for every thread of the grid. Throws std::runtime_error, which names block and thread,
// at
// - an access outside shared memory, outside a GuardedMemory or through a bad pointer, at a misaligned pack;
// - threads of a block that wait for each other in different places, or for one that has ended;
// - a shuffle that not all 32 lanes of a warp take part in, with the same distance and type;
// - an asynchronous copy that is never waited for;
// - a block that ends while others of its cluster may still read its shared memory;
// - a deadlock across blocks.
// Shared memory starts as NaN, and so does what an asynchronous copy has yet to fill. A kernel that fails is
// left where it stands: its destructors do not run. ThreadSanitizer does not always survive that.
void launch(const Launch& launch, const std::function<void()>& kernel);

// ---- what the twin of primitives.cuh is made of; only for kernels

struct Here {
  int thread;
  int64_t block;
  int64_t grid;
  char* shared;
};
inline thread_local Here here{};

void visit_memory();                   // another thread may go first
void check_pack(const void* address);  // 16 bytes of global memory, aligned
void check_shared_pack(const void* address);
void sync_block();
bool any_in_block(bool condition);
uint64_t shuffle_xor(uint64_t value, int bytes, int distance);
void start_copy(void* to, const void* from);
bool next_copy(void*& to, const void*& from);  // one that was started; false where there is none
void wait_for_flip(const uint32_t* word, uint32_t before);
void sync_cluster();
const void* cluster_address(const void* shared, int bytes, int rank);

}  // namespace simt
