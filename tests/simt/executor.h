// Runs a kernel's source on the CPU, a fiber for each CUDA thread, and reports what a GPU would not: see
// launch().
//
// Fibers of a worker's blocks take turns on one OS thread; they change places where they wait for each other
// and, by chance, at accesses to global memory. So values that happen to be right prove little about missing
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
using Kernel = std::function<void()>;

// Runs `kernel` once for every thread of the grid. Throws std::runtime_error, which names block and thread,
// at
// - an access outside shared memory, outside a GuardedMemory or through a bad pointer, or a misaligned one;
// - a shuffle that not all 32 lanes of a warp take part in, with the same distance and type;
// - an asynchronous copy that is never waited for;
// - a push to a block whose barrier may not be initialised yet, or that the barrier does not expect, and a
//   block that ends before everything that its barrier expects has arrived;
// - a wait for other blocks of a launch that is not cooperative;
// - threads that wait for what nobody does: a deadlock.
// Shared memory starts as NaN, and so does what an asynchronous copy has yet to fill. What is pushed arrives
// at any time before somebody waits for it. A kernel that fails is left where it stands: its destructors do
// not run. ThreadSanitizer does not always survive that.
void launch(const Launch& launch, const Kernel& kernel);

// The second by programmatic dependent launch: its blocks start once every block of the first has called
// launch_dependents() or has ended, and must call wait_for_primary(). Seed and workers are the first's.
void launch(const Launch& first, const Kernel& first_kernel, const Launch& second,
            const Kernel& second_kernel);

// ---- what the twin of primitives.cuh is made of; only for kernels

struct Here {
  int thread;
  int64_t block;
  int64_t grid;
  char* shared;
};
inline thread_local Here here{};

void visit_memory();  // another thread may go first
void check_global(const void* address, int bytes);
void check_shared(const char* what, const void* address, int bytes);
void sync_block();
bool any_in_block(bool condition);
// The value of lane `from` of the warp. All must be in the same function, by the same distance.
uint64_t shuffle(const char* what, uint64_t value, int bytes, int distance, int from);
uint32_t ballot(bool condition);

void start_copy(void* to, const void* from);
bool next_copy(void*& to, const void*& from);  // one that was started; false where there is none

void init_barrier(const uint64_t* barrier, uint32_t bytes);
void arrive_cluster();
void wait_cluster();
struct Bytes16 {
  uint64_t halves[2];
};
// Writes are the twin's, so that ThreadSanitizer sees them.
using Write = void (*)(void* to, const Bytes16& value);
void push(const Bytes16& value, void* to, const uint64_t* barrier, int rank, Write write);
void wait_barrier(const uint64_t* barrier);

Bytes16 load_word(const void* address);
void store_word(void* address, const Bytes16& word);
void pause();

void launch_dependents();
void wait_for_primary();

}  // namespace simt
