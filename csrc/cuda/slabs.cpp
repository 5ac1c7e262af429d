#include "cuda/slabs.h"

#include <algorithm>
#include <numeric>

namespace fused_bn::cuda {
namespace {

constexpr int kSlabVectors = 64;    // channels_last: beyond, rows are long enough for any memory
constexpr int kSlabChannels = 512;  // channels_first: each costs shared memory

class Slabs {
 public:
  explicit Slabs(const Problem& p) : p_(p), view_(p.view), threads_(threads_of(p.dtype)) {
    pixels_ = view_.layout == Layout::channels_last ? kVector / std::gcd(view_.C, int64_t{kVector}) : 1;
    if (pixels_ > 1 && !fits_anywhere(pixels_ * view_.C, view_.C, pixels_ * view_.C)) pixels_ = 1;
    unit_ = kVector / std::gcd(view_.S, int64_t{kVector});
  }

  std::vector<Geometry> all(int64_t shared_per_block) const {
    std::vector<Geometry> found;
    if (view_.layout == Layout::channels_last) {
      matrix_of_pixels(found);
    } else {
      const bool short_rows = unit_ * view_.S <= matrix_columns();
      const bool whole_rows = view_.S % kVector == 0;
      const int64_t least = std::min(unit_, view_.C);
      if (whole_rows ? short_rows : short_rows && fits_anywhere(least * view_.S, least, view_.C * view_.S)) {
        matrix_of_images(found);
      }
      if (whole_rows || found.empty()) rows(found);
    }
    const auto unfit = [&](const Geometry& g) { return shared_bytes(g) > shared_per_block || g.steps == 0; };
    found.erase(std::remove_if(found.begin(), found.end(), unfit), found.end());
    return found;
  }

 private:
  Geometry common() const {
    Geometry g{};
    g.N = view_.N;
    g.C = view_.C;
    g.S = view_.S;
    g.elements = view_.elements();
    g.channels_last = view_.layout == Layout::channels_last;
    g.threads = threads_;
    g.group = g.groups = 1;
    return g;
  }

  Geometry columns(int64_t slab_columns, int64_t slab_channels, int64_t row_length) const {
    Geometry g = common();
    g.mapping = Mapping::columns;
    g.row_length = row_length;
    g.rows = divide_up(g.elements, row_length);
    g.slab_columns = static_cast<int>(slab_columns);
    g.slab_channels = static_cast<int>(slab_channels);
    g.slab_vectors = static_cast<int>(divide_up(slab_columns, kVector));
    g.slabs = static_cast<int>(divide_up(row_length, slab_columns));
    g.lanes = threads_ / g.slab_vectors;
    cut_steps(g, g.rows);
    g.whole = p_.alignment >= 16 && row_length % kVector == 0 && slab_columns % kVector == 0 &&
              g.elements % row_length == 0;
    return g;
  }

  // None, which all() drops, where they would not fit an int.
  static void cut_steps(Geometry& g, int64_t lanes_taken) {
    if (divide_up(lanes_taken, g.lanes) <= INT32_MAX) g.cut_steps();
  }

  // Whatever the group will be.
  int64_t shared_bytes(const Geometry& g) const {
    Geometry largest = g;
    largest.group = kMostBlocks;
    return SharedLayout::of(largest, tensors_read(p_.direction), element_bytes(p_.dtype),
                            compute_bytes(p_.dtype))
        .bytes;
  }

  bool fits_anywhere(int64_t slab_columns, int64_t slab_channels, int64_t row_length) const {
    if (slab_columns > matrix_columns()) return false;
    return shared_bytes(columns(slab_columns, slab_channels, row_length)) <= kSmallestShared;
  }

  static void add(std::vector<Geometry>& found, const Geometry& g) {
    const auto same = [&](const Geometry& other) { return other.slab_columns == g.slab_columns; };
    if (std::none_of(found.begin(), found.end(), same)) found.push_back(g);
  }

  // channels_last. A row is a pixel, cut into powers of two of vectors or evenly; or a few pixels, not cut.
  void matrix_of_pixels(std::vector<Geometry>& found) const {
    if (pixels_ > 1) {
      add(found, columns(pixels_ * view_.C, view_.C, pixels_ * view_.C));
      return;
    }
    const int64_t vectors = divide_up(view_.C, kVector);
    for (int64_t most = kSlabVectors; most >= 2; most /= 2) {
      const int64_t even = divide_up(vectors, divide_up(vectors, most));
      for (const int64_t width : {std::min(most, vectors), even}) {
        add(found, columns(width * kVector, width * kVector, view_.C));
      }
    }
  }

  // channels_first, short rows. Slabs of which 1, 2, 4, ... rows fill the threads of a block, and even ones.
  void matrix_of_images(std::vector<Geometry>& found) const {
    for (int64_t most = matrix_columns(); most >= unit_ * view_.S; most /= 2) {
      const int64_t fitting = std::min<int64_t>(most / view_.S, kSlabChannels) / unit_ * unit_;
      const int64_t parts = divide_up(view_.C, fitting);
      const int64_t even = divide_up(divide_up(view_.C, parts), unit_) * unit_;
      for (const int64_t width : {fitting, even}) {
        const int64_t channels = std::min(width, view_.C);
        add(found, columns(channels * view_.S, channels, view_.C * view_.S));
      }
    }
  }

  // channels_first, long rows.
  void rows(std::vector<Geometry>& found) const {
    Geometry g = common();
    const int64_t vectors = divide_up(view_.S, kVector);
    // Division's demand, for the last thread of the last step.
    const int64_t most = view_.N * vectors + threads_;
    if (static_cast<uint64_t>(most) > UINT64_MAX / static_cast<uint64_t>(vectors)) return;
    g.mapping = Mapping::rows;
    g.rows = view_.N;
    g.row_length = view_.S;
    g.row_vectors = Division::by(static_cast<uint64_t>(vectors));
    g.slab_columns = g.slab_channels = g.slab_vectors = 1;
    g.slabs = static_cast<int>(view_.C);
    g.lanes = threads_;
    cut_steps(g, view_.N * vectors);
    g.whole = p_.alignment >= 16 && view_.S % kVector == 0;
    found.push_back(g);
  }

  // Of a matrix row that one block handles in one step.
  int64_t matrix_columns() const { return int64_t{threads_} * kVector; }

  const Problem& p_;
  const View& view_;
  int threads_;
  int64_t pixels_;  // channels_last: in a matrix row
  int64_t unit_;    // channels_first: so many channels fill vectors
};

}  // namespace

std::vector<Geometry> slabs_for(const Problem& problem, int64_t shared_per_block) {
  return Slabs(problem).all(shared_per_block);
}

}  // namespace fused_bn::cuda
