#include <algorithm>
#include <limits>
#include <numeric>

#include "cuda/planner/internal.h"

namespace fused_bn::cuda {
namespace {

constexpr int64_t kVectorBytes = 16;
// Shorter contiguous runs are slow: a copy reaches 3.6 of 4.2 TB/s at 128 bytes, 2.95 at 64, 2.0 at 32.
constexpr int64_t kShortestRun = 128;
// Limits so that a thread's place fits an int eight passes further, and quotients are exact (Division).
constexpr int64_t kMostRowVectors = int64_t{1} << 30, kMostProduct = int64_t{1} << 62;

// A tensor as a matrix of vectors. Rows are cut between units, the fewest channels that fill whole vectors.
struct Matrix {
  Tiling uncut;
  int64_t unit_vectors, unit_channels;
};

std::optional<Matrix> matrix_of(const View& v, int vector) {
  // With S = 1 or C = 1 both layouts are the same.
  const bool last = v.S == 1 || (v.C == 1 ? vector > 1 : v.layout == Layout::channels_last);
  const int64_t length = last ? 1 : v.S, row = v.C * length, rows = v.elements() / row;
  const int64_t channels = vector / std::gcd(length, int64_t{vector});
  const int64_t longest = std::numeric_limits<int32_t>::max();  // unused along rows
  Tiling t{};
  t.N = v.N;
  t.C = v.C;
  t.S = v.S;
  t.elements = v.elements();
  t.channels_last = last;
  t.vector = vector;
  t.mixed = channels > 1;
  t.fold = static_cast<int32_t>(vector / std::gcd(row, int64_t{vector}));
  t.rows = rows / t.fold;
  t.row_vectors = t.fold * row / vector;
  t.channel_length = static_cast<int32_t>(std::min(length, longest));
  t.threads = kThreads;
  t.group = 1;
  if (t.fold == 1) return Matrix{t, channels * length / vector, channels};
  if (rows % t.fold != 0 || t.row_vectors > kThreads) return std::nullopt;
  return Matrix{t, t.row_vectors, v.C};
}

Tiling tiling_of(const Matrix& m, Walk walk, int64_t units) {
  Tiling t = m.uncut;
  t.walk = walk;
  t.tile_vectors = static_cast<int32_t>(units * m.unit_vectors);
  t.tile_channels = static_cast<int32_t>(units * m.unit_channels);
  t.tiles = t.groups = static_cast<int32_t>(divide_up(t.C, t.tile_channels));
  t.derive();
  return t;
}

// Adds tilings, each about twice as wide as the one before. Prefers those whose last tile is not much
// narrower; else takes the one whose last tile is widest.
void add_columns(const Problem& p, const Matrix& m, int64_t most_channels, std::optional<int64_t> channels,
                 std::vector<Tiling>& found) {
  const int64_t all = m.uncut.row_vectors / m.unit_vectors;
  const int64_t unit_bytes = m.unit_vectors * m.uncut.vector * element_bytes(p.dtype);
  const int64_t most = std::min({all, kThreads / m.unit_vectors, most_channels / m.unit_channels});
  const int64_t least = channels ? 1 : std::min(most, divide_up(kShortestRun, unit_bytes));
  int64_t last = 0, widest = most;
  for (int64_t units = std::max<int64_t>(least, 1); units <= most; ++units) {
    if (all % units > all % widest) widest = units;
    const bool is_even = all % units == 0 || all % units >= least;
    const bool is_wanted = channels ? units * m.unit_channels == std::min(*channels, p.view.C)
                                    : is_even && (units >= 2 * last || units == most);
    if (!is_wanted) continue;
    found.push_back(tiling_of(m, Walk::down_columns, units));
    last = units;
  }
  if (last == 0 && !channels && most > 0) found.push_back(tiling_of(m, Walk::down_columns, widest));
}

std::vector<Tiling> tilings_of(const Problem& p, const Matrix& m, Kernel kernel,
                               std::optional<int64_t> channels) {
  std::vector<Tiling> found;
  const bool has_rows = !m.uncut.mixed && !m.uncut.channels_last && m.unit_vectors > 1 &&
                        m.unit_vectors <= kMostRowVectors &&
                        m.uncut.rows <= kMostProduct / m.unit_vectors / m.unit_vectors;
  if (has_rows && channels.value_or(1) == 1) found.push_back(tiling_of(m, Walk::along_rows, 1));
  // In kernels that sum, each thread finishes one channel. A fold cannot be cut.
  const bool is_whole = kernel == Kernel::apply && m.uncut.fold > 1;
  add_columns(p, m, is_whole ? m.unit_channels : kThreads, channels, found);
  // A single channel uses along_rows, and row_of() cannot divide by 1.
  const auto is_other = [&](const Tiling& t) {
    return t.walk == Walk::down_columns && !t.mixed &&
           (has_rows ? t.tile_channels == 1 : t.tile_vectors == 1 && t.row_vectors > 1);
  };
  found.erase(std::remove_if(found.begin(), found.end(), is_other), found.end());
  int64_t longest = 0;
  for (const Tiling& t : found) longest = std::max(longest, run_bytes(t, p.dtype));
  const auto is_short = [&](const Tiling& t) {
    return run_bytes(t, p.dtype) < std::min(longest, kShortestRun);
  };
  if (!channels) found.erase(std::remove_if(found.begin(), found.end(), is_short), found.end());
  return found;
}

}  // namespace

std::vector<Tiling> tilings_for(const Problem& p, Kernel kernel, std::optional<int64_t> channels) {
  std::vector<Tiling> found;
  const bool is_whole = p.dtype != DType::f64 && p.alignment >= kVectorBytes;
  for (const int vector : {static_cast<int>(kVectorBytes) / element_bytes(p.dtype), 1}) {
    if (!found.empty() || (vector > 1 ? !is_whole : kernel == Kernel::resident)) continue;
    if (const auto matrix = matrix_of(p.view, vector)) found = tilings_of(p, *matrix, kernel, channels);
  }
  return found;
}

bool is_countable(const Tiling& t) {
  constexpr int64_t kCounted = int64_t{1} << 32, kPasses = 8;
  if (t.units > kMostProduct / t.turn) return false;
  if (t.rows == 1 || t.rows <= kCounted / t.row_vectors) return true;
  if (!t.mixed && t.tile_vectors == 1) return false;  // row_of() cannot divide by 1
  const int64_t units = kPasses * t.turn;
  const int64_t rows = t.walk == Walk::down_columns ? units : units / t.tile_vectors + 1;
  return rows <= (kCounted - t.tile_vectors) / t.row_vectors;
}

int64_t run_bytes(const Tiling& t, DType dtype) {
  if (t.tiles == 1) return t.elements * element_bytes(dtype);
  const int64_t last = t.row_vectors - int64_t{t.tiles - 1} * t.tile_vectors;
  return std::min<int64_t>(t.tile_vectors, last) * t.vector * element_bytes(dtype);
}

}  // namespace fused_bn::cuda
