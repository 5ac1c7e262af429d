// What csrc/cuda/tiling.h says that the threads of a launch touch; tests/planner/tilings.py compiles and
// calls it.
#include "cuda/tiling.h"

#include <type_traits>

using namespace fused_bn::cuda;

namespace {

// In the order of FIELDS in tilings.py.
Tiling tiling_of(const int64_t* fields) {
  Tiling t{};
  const auto next = [&](auto& field) {
    field = static_cast<std::remove_reference_t<decltype(field)>>(*fields++);
  };
  next(t.N);
  next(t.C);
  next(t.S);
  next(t.elements);
  next(t.channels_last);
  next(t.vector);
  next(t.mixed);
  next(t.fold);
  next(t.rows);
  next(t.row_vectors);
  next(t.tile_vectors);
  next(t.tile_channels);
  next(t.tiles);
  next(t.channel_length);
  next(t.threads);
  next(t.group);
  next(t.groups);
  next(t.interleaved);
  t.walk = *fields != 0 ? Walk::down_columns : Walk::along_rows;
  t.derive();
  return t;
}

// The channel, counted within the tile, of one of the elements of a tile's row.
int channel_of(const Tiling& t, int element) {
  return t.walk == Walk::along_rows ? 0 : element / t.channel_length % t.tile_channels;
}

template <bool mixed, class Body>
void walk(const Tiling& t, int tile, int block, int thread, const Body& body) {
  Vectors<mixed> at(t, tile, block, thread);
  for (int64_t i = 0; i < at.count(); ++i, at.next()) {
    if (i % 8 == 7) at.rebase();
    body(at.position(), at.column());
  }
}

// Calls body(position, column) for each vector of a thread.
template <class Body>
void walk_any(const Tiling& t, int tile, int block, int thread, const Body& body) {
  t.mixed ? walk<true>(t, tile, block, thread, body) : walk<false>(t, tile, block, thread, body);
}

}  // namespace

// For each element that a thread touches: the block within its group, the element's offset, and what the
// tiling takes for its channel. Returns how many elements there are; no more than `room` are written.
extern "C" int64_t tiling_visits(const int64_t* fields, int64_t room, int64_t* out) {
  const Tiling t = tiling_of(fields);
  int64_t count = 0;
  for (int tile = 0; tile < t.tiles; ++tile) {
    for (int block = 0; block < t.group; ++block) {
      for (int thread = 0; thread < t.threads; ++thread) {
        walk_any(t, tile, block, thread, [&](int64_t position, int column) {
          for (int i = 0; i < t.vector; ++i) {
            if (count++ >= room) continue;
            *out++ = block;
            *out++ = position * t.vector + i;
            *out++ = t.first_channel(tile) + channel_of(t, column * t.vector + i);
          }
        });
      }
    }
  }
  return count;
}

extern "C" int64_t tiling_block_values(const int64_t* fields, int block) {
  return tiling_of(fields).block_values(block);
}

// Where the vector ends that lies last, in elements, as its thread comes to it step by step: there a 32-bit
// number that should have 64 shows.
extern "C" int64_t tiling_last_end(const int64_t* fields) {
  const Tiling t = tiling_of(fields);
  const int tile = t.tiles - 1;
  const int64_t last = t.units - 1, columns = t.row_vectors - int64_t{tile} * t.tile_vectors;
  const int block = t.interleaved ? static_cast<int>(last / t.pass_units % t.group) : t.group - 1;
  const int64_t within = (t.interleaved ? last : last - t.first_unit(block)) % t.pass_units;
  const int64_t thread = t.walk == Walk::along_rows ? within : within * t.tile_vectors + columns - 1;
  int64_t end = 0;
  walk_any(t, tile, block, static_cast<int>(thread), [&](int64_t position, int) { end = position + 1; });
  return end * t.vector;
}

extern "C" uint64_t tiling_quotient(uint64_t divisor, uint64_t dividend) {
  return Division::by(divisor).quotient(dividend);
}

extern "C" uint32_t tiling_row_of(int32_t tile_vectors, uint32_t place) {
  Tiling t{};
  t.vector = t.fold = t.group = 1;
  t.rows = t.row_vectors = t.threads = t.tile_vectors = tile_vectors;
  t.derive();
  return t.row_of(place);
}
