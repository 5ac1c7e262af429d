// Channels first: a channel is N rows of S neighbouring values.
//
// A channel is read in chunks of about 4096 values. Where there are enough channels for the threads, one
// thread does a whole channel, so that its second read comes from cache; else a channel's parts go to
// different threads. Chunks and parts depend on the shape alone and are merged in one order, so the bits do
// not depend on the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/channel.h"

namespace fused_bn::cpu {
namespace {

constexpr int64_t kChunkValues = 4096;    // float sums this short keep full accuracy; two tensors of them fit L1

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of one channel's memory: count rows of length values, stride apart.
struct Rows {
  int64_t offset, count, length, stride;
};

// How the values of a channel are cut into chunks, and chunks into parts.
class Chunks {
 public:
  explicit Chunks(const View& view)
      : view_(view),
        rows_(std::clamp<int64_t>(kChunkValues / view.S, 1, view.N)),
        splits_(divide_up(view.S, kChunkValues)),
        length_(divide_up(view.S, splits_)),
        chunks_(divide_up(view.N, rows_) * splits_),
        parts_(std::clamp<int64_t>(chunks_ / 4, 1, 64)) {}

  int64_t parts() const { return parts_; }
  int64_t first_chunk(int64_t part) const { return chunks_ * part / parts_; }

  Rows rows(int64_t c, int64_t chunk) const {
    const int64_t n = chunk / splits_ * rows_;
    const int64_t s = chunk % splits_ * length_;
    return {(n * view_.C + c) * view_.S + s, std::min(rows_, view_.N - n), std::min(length_, view_.S - s),
            view_.C * view_.S};
  }

 private:
  View view_;
  int64_t rows_, splits_, length_, chunks_, parts_;
};

template <class T>
Moments chunk_moments(const T* x, const Rows& rows, Compute<T> pivot) {
  using A = Compute<T>;
  Vec<A> sum[4] = {}, squares[4] = {};
  const Vec<A> k = broadcast(pivot);
  for (int64_t r = 0; r < rows.count; ++r) {
    const T* row = x + rows.offset + r * rows.stride;
    for_each_vector<A, 4>(rows.length, [&](int64_t i, auto slot, auto lanes) {
      const Vec<A> d = keep<A>(load(row + i, lanes) - k, lanes);
      sum[slot] += d;
      squares[slot] = fma(d, d, squares[slot]);
    });
  }
  const double count = static_cast<double>(rows.count * rows.length);
  const double s = sum_lanes<4, A>(sum);
  return {count, static_cast<double>(pivot) + s / count, sum_lanes<4, A>(squares) - s * (s / count)};
}

// Shifted by the mean so far, which bounds the error by that of the deviations themselves; the first chunk
// finds its own mean first, so that an outlying first value cannot spoil it.
template <class T>
Moments part_moments(const T* x, const Chunks& chunks, int64_t c, int64_t part) {
  using A = Compute<T>;
  const int64_t first = chunks.first_chunk(part);
  const Rows rows = chunks.rows(c, first);
  const double guess = chunk_moments(x, rows, static_cast<A>(read_element<T>(x, rows.offset))).mean;
  Moments moments = chunk_moments(x, rows, static_cast<A>(guess));
  for (int64_t chunk = first + 1; chunk < chunks.first_chunk(part + 1); ++chunk) {
    moments = merge(moments, chunk_moments(x, chunks.rows(c, chunk), static_cast<A>(moments.mean)));
  }
  moments.m2 = moments.m2 < 0 ? 0 : moments.m2;
  return moments;
}

// Stores a vector a time; stores past the caches go to whole aligned vectors only.
template <class T, bool streaming>
struct RowWriter {
  // How many leading values of a row precede the first aligned vector.
  static int64_t head(const T* row, int64_t length) {
    if constexpr (!streaming) return 0;
    constexpr int64_t bytes = kLanes<Compute<T>> * sizeof(T);
    const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % bytes);
    return misaligned == 0 ? 0 : std::min<int64_t>((bytes - misaligned) / sizeof(T), length);
  }

  FUSED_BN_INLINE static void put(T* p, Vec<Compute<T>> v, Whole) {
    if constexpr (streaming) {
      stream(p, v);
    } else {
      store(p, v, Whole{});
    }
  }
  FUSED_BN_INLINE static void put(T* p, Vec<Compute<T>> v, First first) { store(p, v, first); }
};

// Writes value(i, lanes) to every element of the rows.
template <class T, bool streaming, class Value>
FUSED_BN_INLINE void write_rows(T* y, const Rows& rows, Value value) {
  using Writer = RowWriter<T, streaming>;
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t start = rows.offset + r * rows.stride;
    const int64_t head = Writer::head(y + start, rows.length);
    if (head > 0) {
      const First lanes{static_cast<int>(head)};
      store(y + start, value(start, lanes), lanes);
    }
    for_each_vector<Compute<T>, 1>(rows.length - head, [&](int64_t i, auto, auto lanes) {
      const int64_t at = start + head + i;
      Writer::put(y + at, value(at, lanes), lanes);
    });
  }
}

template <class T, Activation activation, bool streaming>
void transform_rows(const T* x, T* y, const Rows& rows, const Affine<Compute<T>>& affine) {
  using A = Compute<T>;
  const AffineVec<A> a(affine);
  write_rows<T, streaming>(y, rows, [&](int64_t at, auto lanes) {
    return activate<activation>(a.transform(a.centre(load(x + at, lanes))));
  });
}

template <class T, Activation activation>
GradSums reduce_rows(const T* dy, const T* x, const Rows& rows, const Affine<Compute<T>>& affine,
                     Compute<T> invstd) {
  using A = Compute<T>;
  const AffineVec<A> a(affine);
  const Vec<A> inv = broadcast(invstd);
  Vec<A> sum[4] = {}, sum_xhat[4] = {};
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t start = rows.offset + r * rows.stride;
    for_each_vector<A, 4>(rows.length, [&](int64_t i, auto slot, auto lanes) {
      const Vec<A> centred = a.centre(load(x + start + i, lanes));
      const Vec<A> g = activate_backward<activation>(a.transform(centred), load(dy + start + i, lanes));
      sum[slot] += g;  // lanes that take no part loaded a zero gradient
      sum_xhat[slot] = fma(g, centred * inv, sum_xhat[slot]);
    });
  }
  return {sum_lanes<4, A>(sum), sum_lanes<4, A>(sum_xhat)};
}

template <class T, Activation activation, bool streaming>
void grad_rows(const T* dy, const T* x, T* dx, const Rows& rows, const Affine<Compute<T>>& affine,
               Compute<T> invstd, const GradFactors<Compute<T>>& factors) {
  using A = Compute<T>;
  const GradVec<A, activation> grad{AffineVec<A>(affine), broadcast(invstd), broadcast(factors.along_xhat),
                                    broadcast(factors.constant)};
  write_rows<T, streaming>(
      dx, rows, [&](int64_t at, auto lanes) { return grad.dx(load(dy + at, lanes), load(x + at, lanes)); });
}

// Runs per-part work, then what needs all parts of a channel, then per-part work again. summarise(c, part)
// gives a part's summary; finish(c, parts) sees a channel's; emit(c, part) writes its share of the output.
template <class Summary, class Summarise, class Finish, class Emit>
void run_channels(const View& view, const Chunks& chunks, const Execution& execution, Summarise summarise,
                  Finish finish, Emit emit) {
  const int64_t parts = chunks.parts();
  const int64_t rounds = divide_up(view.C, execution.threads);
  const bool balanced = 5 * view.C >= 4 * rounds * execution.threads;
  const auto whole_channels = [&](int64_t begin, int64_t end) {
    std::vector<Summary> summaries(parts);
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t part = 0; part < parts; ++part) summaries[part] = summarise(c, part);
      finish(c, summaries.data());
      // Backwards: the part read last is the one still in cache.
      for (int64_t part = parts - 1; part >= 0; --part) emit(c, part);
    }
  };
  if (runs_serially(view, execution)) {
    whole_channels(0, view.C);
  } else if (parts == 1 || balanced) {
    execution.parallel_for(view.C, whole_channels);
  } else {
    std::vector<Summary> summaries(view.C * parts);
    execution.parallel_for(view.C * parts, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) summaries[i] = summarise(i / parts, i % parts);
    });
    for (int64_t c = 0; c < view.C; ++c) finish(c, summaries.data() + c * parts);
    execution.parallel_for(view.C * parts, [&](int64_t begin, int64_t end) {
      for (int64_t i = end - 1; i >= begin; --i) emit(i / parts, i % parts);
    });
  }
}

template <class T, Activation activation, bool streaming>
struct ChannelsFirst {
  using A = Compute<T>;

  static void forward(const ForwardParams& p) {
    const Chunks chunks(p.view);
    const T* x = static_cast<const T*>(p.input);
    T* y = static_cast<T*>(p.output);
    const Statistics<A> statistics(p.statistics, p.view.C);
    if (!p.training) save_running_statistics<A>(p);
    run_channels<Moments>(
        p.view, chunks, p.execution,
        [&](int64_t c, int64_t part) {
          return p.training ? part_moments(x, chunks, c, part) : Moments{};
        },
        [&](int64_t c, const Moments* parts) {
          if (!p.training) return;
          Moments moments;
          for (int64_t part = 0; part < chunks.parts(); ++part) moments = merge(moments, parts[part]);
          if (!std::isfinite(moments.m2)) {
            moments = exact_moments(x + c * p.view.S, p.view.N, p.view.C * p.view.S, p.view.S, 1);
          }
          finish_channel<A>(p, c, moments);
        },
        [&](int64_t c, int64_t part) {
          const Affine<A> affine = statistics.affine(c, p.weight, p.bias);
          for (int64_t chunk = chunks.first_chunk(part + 1) - 1; chunk >= chunks.first_chunk(part); --chunk) {
            transform_rows<T, activation, streaming>(x, y, chunks.rows(c, chunk), affine);
          }
          if constexpr (streaming) stream_fence();
        });
  }

  static void backward(const BackwardParams& p) {
    const Chunks chunks(p.view);
    const T* dy = static_cast<const T*>(p.grad_output);
    const T* x = static_cast<const T*>(p.input);
    T* dx = static_cast<T*>(p.grad_input);
    const Statistics<A> statistics(const_cast<void*>(p.statistics), p.view.C);
    const bool reduces = needs_sums(p);
    std::vector<GradFactors<A>> factors(p.view.C);
    run_channels<GradSums>(
        p.view, chunks, p.execution,
        [&](int64_t c, int64_t part) {
          GradSums sums;
          if (!reduces) return sums;
          const Affine<A> affine = statistics.affine(c, p.weight, p.bias);
          for (int64_t chunk = chunks.first_chunk(part); chunk < chunks.first_chunk(part + 1); ++chunk) {
            sums.add(reduce_rows<T, activation>(dy, x, chunks.rows(c, chunk), affine, statistics.invstd[c]));
          }
          return sums;
        },
        [&](int64_t c, const GradSums* parts) {
          GradSums sums;
          for (int64_t part = 0; part < chunks.parts(); ++part) sums.add(parts[part]);
          write(p.grad_weight, c, sums.grad_xhat);
          write(p.grad_bias, c, sums.grad);
          factors[c] = grad_factors(p, statistics.affine(c, p.weight, p.bias).scale, sums);
        },
        [&](int64_t c, int64_t part) {
          if (dx == nullptr) return;
          const Affine<A> affine = statistics.affine(c, p.weight, p.bias);
          for (int64_t chunk = chunks.first_chunk(part + 1) - 1; chunk >= chunks.first_chunk(part); --chunk) {
            grad_rows<T, activation, streaming>(dy, x, dx, chunks.rows(c, chunk), affine,
                                                statistics.invstd[c], factors[c]);
          }
          if constexpr (streaming) stream_fence();
        });
  }
};

}  // namespace
}  // namespace fused_bn::cpu
