// Runs a kernel's source on the CPU, with one fiber per CUDA thread, and reports errors that a GPU would not:
// see launch().
//
// The fibers of a worker's blocks take turns on one OS thread. They switch when they wait for each other and,
// at random, at accesses to global memory. Right values are therefore no proof that no barrier is missing.
// ThreadSanitizer, which knows all fibers and barriers, finds those. The effects of weak memory and the speed
// are not modelled.
#pragma once

#include <cstdint>
#include <functional>

namespace simt {

struct Launch {
  int64_t grid = 1;
  int threads = 32;          // per block
  int cluster = 1;           // blocks
  bool cooperative = false;  // all blocks run at once
  int64_t shared_bytes = 0;  // per block
  uint64_t seed = 0;         // of the order of threads and blocks; 0: by index, never interrupted
  int workers = 0;           // OS threads; 0: one per processor. With 1, a seed repeats a run exactly.
};
using Kernel = std::function<void()>;

// Runs `kernel` once for every thread of the grid. Throws std::runtime_error, which names block and thread,
// for
// - an access outside shared memory, outside a GuardedMemory or through a bad pointer, or a misaligned one;
// - a shuffle in which not all 32 lanes of a warp take part with the same distance and type;
// - an asynchronous copy without a wait;
// - a push to a block whose barrier may not be initialised or does not expect it, and a block that ends
// before all
//   expected pushes have arrived;
// - a wait for other blocks in a launch that is not cooperative;
// - a deadlock.
// Shared memory starts as NaN, and so does the target of an asynchronous copy. A push arrives at any time
// before a thread waits for it. A kernel that fails is abandoned: its destructors do not run, which
// ThreadSanitizer does not always survive.
void launch(const Launch& launch, const Kernel& kernel);

// Runs the second kernel by programmatic dependent launch: its blocks start once every block of the first has
// called launch_dependents() or has ended, and must call wait_for_primary(). Uses the first's seed and
// workers.
void launch(const Launch& first, const Kernel& first_kernel, const Launch& second,
            const Kernel& second_kernel);

// ---- the functions under the twin of primitives.cuh; for kernels only

struct Here {
  int thread;
  int64_t block;
  int64_t grid;
  char* shared;
};
inline thread_local Here here{};

void visit_memory();  // may let another thread run first
void check_global(const void* address, int bytes);
void check_shared(const char* what, const void* address, int bytes);
void sync_block();
bool any_in_block(bool condition);
// Returns the value of lane `from` of the warp. All lanes must call the same function with the same distance.
uint64_t shuffle(const char* what, uint64_t value, int bytes, int distance, int from);
uint32_t ballot(bool condition);

void start_copy(void* to, const void* from);
bool next_copy(void*& to, const void*& from);  // takes a started copy; false if there is none

void init_barrier(const uint64_t* barrier, uint32_t bytes);
void arrive_cluster();
void wait_cluster();
struct Bytes16 {
  uint64_t halves[2];
};
// The twin does the writes, so that ThreadSanitizer sees them.
using Write = void (*)(void* to, const Bytes16& value);
void push(const Bytes16& value, void* to, const uint64_t* barrier, int rank, Write write);
void wait_barrier(const uint64_t* barrier);

Bytes16 load_word(const void* address);
void store_word(void* address, const Bytes16& word);
void pause();

void launch_dependents();
void wait_for_primary();

}  // namespace simt
