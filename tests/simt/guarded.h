// Memory that ends at a guard page, and descriptions of addresses in or near it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

// Memory filled with 0xFF, a NaN in every floating-point type. It ends directly before the guard page if
// `alignment` divides the size. intact() checks the bytes between, and those before the first one.
class GuardedMemory {
 public:
  enum class Kind { global, shared };

  GuardedMemory(Kind kind, int64_t bytes, int64_t alignment);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool contains(const void* address, int64_t bytes) const;

  void fill();          // with 0xFF again
  bool intact() const;  // whether nothing was written next to it

 private:
  friend std::string describe_address(const void* address);

  Kind kind_;
  int64_t bytes_;
  char* pages_;  // the first guard page
  size_t page_bytes_;
  char* first_;  // between the guard pages
  char* last_;   // the second one
  char* data_;
  GuardedMemory* next_;
};

// Returns "4 bytes past the end of shared memory of 64 bytes" or the like, or the bare number.
std::string describe_address(const void* address);

}  // namespace simt
