// Channels last: rows of C neighbouring channels, one row a pixel. Also (N, C) input, where S is 1.
//
// Vectors run along the channels. Where C is small, several rows are seen as one row of `columns` values, so
// that every vector is full: LeNet's 6 channels become rows of 48. Column j holds channel j % C. The rows are
// cut into parts that depend on the shape alone and are merged in one order, so the bits do not depend on the
// number of threads.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/channel.h"

namespace fused_bn::cpu {
namespace {

constexpr int64_t kFlushRows = 64;  // float sums this short keep full accuracy; then they go to double
constexpr int64_t kBlockRows = 8;   // rows handled together, so that a column's sums stay in registers

// How many rows of C channels make one row of full vectors, and rows wide enough to hide the loop around them.
template <class A>
int64_t rows_in_one(int64_t C) {
  constexpr int64_t wide = 4 * kLanes<A>;
  const int64_t full = kLanes<A> / std::gcd<int64_t>(C, kLanes<A>);
  if (C * full > 1024) return 1;
  return full * std::max<int64_t>(1, wide / (C * full));
}

// The [N * S, C] matrix as rows of `columns` values, cut into parts; the last row may be short.
class Matrix {
 public:
  Matrix(const View& view, int64_t rows_in_one)
      : C_(view.C), elements_(view.elements()), columns_(view.C * rows_in_one), rows_(elements_ / columns_) {
    const int64_t most = std::min({elements_ / 16384, rows_ / kFlushRows, int64_t{128}});
    while (2 * parts_ <= most) parts_ *= 2;
  }

  int64_t C() const { return C_; }
  int64_t columns() const { return columns_; }
  int64_t parts() const { return parts_; }
  int64_t first_row(int64_t part) const { return rows_ * part / parts_; }
  // What the full rows leave over; it goes with the last part.
  int64_t short_row(int64_t part) const { return part + 1 == parts_ ? elements_ % columns_ : 0; }
  int64_t short_row_offset() const { return rows_ * columns_; }

 private:
  int64_t C_, elements_, columns_, rows_;
  int64_t parts_ = 1;
};

// Calls body(offset, rows, length) for blocks of whole rows, then for the short row if the part has it.
template <class Body>
FUSED_BN_INLINE void for_each_block(const Matrix& m, int64_t part, int64_t block, Body body) {
  const int64_t end = m.first_row(part + 1);
  for (int64_t r = m.first_row(part); r < end; r += block) {
    body(r * m.columns(), std::min(block, end - r), m.columns());
  }
  if (m.short_row(part) > 0) body(m.short_row_offset(), int64_t{1}, m.short_row(part));
}

// Sums of one part, a column each, gathered in float over a few rows and kept as moments in double.
template <class T>
class ColumnMoments {
  using A = Compute<T>;

 public:
  explicit ColumnMoments(int64_t columns)
      : pivot_(columns), sum_(columns), squares_(columns), mean_(columns), m2_(columns), count_(columns) {}

  void add_part(const Matrix& m, int64_t part, const T* x) {
    std::fill(count_.begin(), count_.end(), 0.0);
    for_each_block(m, part, kFlushRows, [&](int64_t offset, int64_t rows, int64_t length) {
      const T* block = x + offset;
      if (count_[0] == 0) {
        // The first rows find their own means first, so that an outlying first value cannot spoil them.
        for (int64_t j = 0; j < length; ++j) pivot_[j] = static_cast<A>(read_element<T>(block, j));
        accumulate(block, rows, m.columns(), length);
        for (int64_t j = 0; j < length; ++j) pivot_[j] += sum_[j] / static_cast<A>(rows);
      }
      accumulate(block, rows, m.columns(), length);
      flush(rows, length);
    });
  }

  // Channel c, from its columns in order.
  Moments channel(int64_t c, int64_t C) const {
    Moments moments;
    for (size_t j = c; j < mean_.size(); j += C) {
      if (count_[j] > 0) moments = merge(moments, {count_[j], mean_[j], m2_[j]});
    }
    return moments;
  }

 private:
  void accumulate(const T* x, int64_t rows, int64_t stride, int64_t length) {
    std::fill_n(sum_.begin(), length, A{0});
    std::fill_n(squares_.begin(), length, A{0});
    for (int64_t r = 0; r < rows; r += kBlockRows) {
      const int64_t count = std::min(kBlockRows, rows - r);
      const T* block = x + r * stride;
      for_each_vector<A, 1>(length, [&](int64_t j, auto, auto lanes) {
        const Vec<A> pivot = load(pivot_.data() + j, lanes);
        Vec<A> sum = load(sum_.data() + j, lanes), squares = load(squares_.data() + j, lanes);
        for (int64_t i = 0; i < count; ++i) {
          const Vec<A> d = load(block + i * stride + j, lanes) - pivot;
          sum += d;
          squares = fma(d, d, squares);
        }
        store(sum_.data() + j, sum, lanes);
        store(squares_.data() + j, squares, lanes);
      });
    }
  }

  // Chan's merge, see moments.h, for all columns at once; they have the same counts but for the short row's.
  void flush(int64_t rows, int64_t length) {
    const double n = static_cast<double>(rows);
    const double before = count_[length - 1];
    const double share = n / (before + n);
    for (int64_t j = 0; j < length; ++j) {
      const double sum = sum_[j];
      const double mean = static_cast<double>(pivot_[j]) + sum / n;
      const double m2 = std::max(static_cast<double>(squares_[j]) - sum * (sum / n), 0.0);
      const double old_mean = before == 0 ? mean : mean_[j];
      const double delta = mean - old_mean;
      mean_[j] = old_mean + delta * share;
      m2_[j] = (before == 0 ? 0.0 : m2_[j]) + m2 + delta * delta * (before * share);
      pivot_[j] = static_cast<A>(mean_[j]);
      count_[j] = before + n;
    }
  }

  std::vector<A> pivot_, sum_, squares_;
  std::vector<double> mean_, m2_, count_;
};

// A channel's numbers repeated for every column that holds it.
template <class A>
class Columns {
 public:
  Columns(const Statistics<A>& statistics, const ChannelVector& weight, const ChannelVector& bias,
          const Matrix& m)
      : values_(kFields * m.columns()), columns_(m.columns()), C_(m.C()) {
    for (int64_t c = 0; c < C_; ++c) {
      const Affine<A> affine = statistics.affine(c, weight, bias);
      set(kMeanHi, c, affine.mean_hi);
      set(kMeanLo, c, affine.mean_lo);
      set(kScale, c, affine.scale);
      set(kShift, c, affine.shift);
      set(kInvstd, c, statistics.invstd[c]);
    }
  }

  A scale(int64_t c) const { return values_[kScale * columns_ + c]; }

  void set_factors(int64_t c, const GradFactors<A>& factors) {
    set(kAlongXhat, c, factors.along_xhat);
    set(kConstant, c, factors.constant);
  }

  template <class Lanes>
  FUSED_BN_INLINE AffineVec<A> affine(int64_t j, Lanes lanes) const {
    return {get(kMeanHi, j, lanes), get(kMeanLo, j, lanes), get(kScale, j, lanes), get(kShift, j, lanes)};
  }

  template <Activation activation, class Lanes>
  FUSED_BN_INLINE GradVec<A, activation> grad(int64_t j, Lanes lanes) const {
    return {affine(j, lanes), get(kInvstd, j, lanes), get(kAlongXhat, j, lanes), get(kConstant, j, lanes)};
  }

  template <class Lanes>
  FUSED_BN_INLINE Vec<A> invstd(int64_t j, Lanes lanes) const {
    return get(kInvstd, j, lanes);
  }

 private:
  enum Field { kMeanHi, kMeanLo, kScale, kShift, kInvstd, kAlongXhat, kConstant, kFields };

  void set(Field field, int64_t c, A value) {
    for (int64_t j = c; j < columns_; j += C_) values_[field * columns_ + j] = value;
  }
  template <class Lanes>
  FUSED_BN_INLINE Vec<A> get(Field field, int64_t j, Lanes lanes) const {
    return load(values_.data() + field * columns_ + j, lanes);
  }

  std::vector<A> values_;
  int64_t columns_, C_;
};

// The two sums of backward of one part, a column each, gathered in float over a few rows and kept in double.
template <class T, Activation activation>
class ColumnGradSums {
  using A = Compute<T>;

 public:
  explicit ColumnGradSums(int64_t columns) : sum_(columns), sum_xhat_(columns), total_(columns) {}

  void add_part(const Matrix& m, int64_t part, const Columns<A>& columns, const T* dy, const T* x) {
    for_each_block(m, part, kFlushRows, [&](int64_t offset, int64_t rows, int64_t length) {
      std::fill_n(sum_.begin(), length, A{0});
      std::fill_n(sum_xhat_.begin(), length, A{0});
      for (int64_t r = 0; r < rows; r += kBlockRows) {
        accumulate(columns, dy + offset + r * m.columns(), x + offset + r * m.columns(),
                   std::min(kBlockRows, rows - r), m.columns(), length);
      }
      for (int64_t j = 0; j < length; ++j) total_[j].add({sum_[j], sum_xhat_[j]});
    });
  }

  GradSums channel(int64_t c, int64_t C) const {
    GradSums sums;
    for (size_t j = c; j < total_.size(); j += C) sums.add(total_[j]);
    return sums;
  }

 private:
  void accumulate(const Columns<A>& columns, const T* dy, const T* x, int64_t rows, int64_t stride,
                  int64_t length) {
    for_each_vector<A, 1>(length, [&](int64_t j, auto, auto lanes) {
      const AffineVec<A> a = columns.affine(j, lanes);
      const Vec<A> invstd = columns.invstd(j, lanes);
      Vec<A> sum = load(sum_.data() + j, lanes), sum_xhat = load(sum_xhat_.data() + j, lanes);
      for (int64_t i = 0; i < rows; ++i) {
        const Vec<A> centred = a.centre(load(x + i * stride + j, lanes));
        const Vec<A> g = activate_backward<activation>(a.transform(centred), load(dy + i * stride + j, lanes));
        sum += g;
        sum_xhat = fma(g, centred * invstd, sum_xhat);
      }
      store(sum_.data() + j, sum, lanes);
      store(sum_xhat_.data() + j, sum_xhat, lanes);
    });
  }

  std::vector<A> sum_, sum_xhat_;
  std::vector<GradSums> total_;
};

// Writes value(column, at, lanes) to a part's elements; prepare(j, lanes) gives what column j's values share.
template <class T, bool streaming, class Prepare, class Value>
FUSED_BN_INLINE void write_part(const Matrix& m, int64_t part, T* y, Prepare prepare, Value value) {
  constexpr int64_t kRowsAtOnce = 4;  // as many share one load of the column's numbers
  for_each_block(m, part, kRowsAtOnce, [&](int64_t offset, int64_t rows, int64_t length) {
    for_each_vector<Compute<T>, 1>(length, [&](int64_t j, auto, auto lanes) {
      const auto column = prepare(j, lanes);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = offset + i * m.columns() + j;
        if constexpr (streaming && std::is_same_v<decltype(lanes), Whole>) {
          stream(y + at, value(column, at, lanes));
        } else {
          store(y + at, value(column, at, lanes), lanes);
        }
      }
    });
  });
  if constexpr (streaming) stream_fence();
}

template <class Body>
void for_each_part(const View& view, const Matrix& m, const Execution& execution, Body body) {
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part);
  };
  if (runs_serially(view, execution) || m.parts() == 1) {
    range(0, m.parts());
  } else {
    execution.parallel_for(m.parts(), range);
  }
}

template <class T, Activation activation, bool streaming>
struct ChannelsLast {
  using A = Compute<T>;

  static Matrix matrix(const View& view) { return Matrix(view, rows_in_one<A>(view.C)); }

  static void forward(const ForwardParams& p) {
    const Matrix m = matrix(p.view);
    const T* x = static_cast<const T*>(p.input);
    T* y = static_cast<T*>(p.output);
    if (p.training) {
      batch_statistics(p, m, x);
    } else {
      save_running_statistics<A>(p);
    }
    const Columns<A> columns(Statistics<A>(p.statistics, m.C()), p.weight, p.bias, m);
    for_each_part(p.view, m, p.execution, [&](int64_t part) {
      write_part<T, streaming>(
          m, part, y, [&](int64_t j, auto lanes) { return columns.affine(j, lanes); },
          [&](const AffineVec<A>& a, int64_t at, auto lanes) {
            return activate<activation>(a.transform(a.centre(load(x + at, lanes))));
          });
    });
  }

  static void backward(const BackwardParams& p) {
    const Matrix m = matrix(p.view);
    const T* dy = static_cast<const T*>(p.grad_output);
    const T* x = static_cast<const T*>(p.input);
    T* dx = static_cast<T*>(p.grad_input);
    Columns<A> columns(Statistics<A>(const_cast<void*>(p.statistics), m.C()), p.weight, p.bias, m);
    if (needs_sums(p)) reduce(p, m, columns, dy, x);
    if (dx == nullptr) return;
    for_each_part(p.view, m, p.execution, [&](int64_t part) {
      write_part<T, streaming>(
          m, part, dx, [&](int64_t j, auto lanes) { return columns.template grad<activation>(j, lanes); },
          [&](const GradVec<A, activation>& grad, int64_t at, auto lanes) {
            return grad.dx(load(dy + at, lanes), load(x + at, lanes));
          });
    });
  }

 private:
  static void batch_statistics(const ForwardParams& p, const Matrix& m, const T* x) {
    const int64_t C = m.C();
    std::vector<Moments> moments(m.parts() * C);
    for_each_part(p.view, m, p.execution, [&](int64_t part) {
      ColumnMoments<T> columns(m.columns());
      columns.add_part(m, part, x);
      for (int64_t c = 0; c < C; ++c) moments[part * C + c] = columns.channel(c, C);
    });
    for (int64_t c = 0; c < C; ++c) {
      Moments total;
      for (int64_t part = 0; part < m.parts(); ++part) total = merge(total, moments[part * C + c]);
      if (!std::isfinite(total.m2)) total = exact_moments(x + c, p.view.values_per_channel(), C, 1, 1);
      finish_channel<A>(p, c, total);
    }
  }

  static void reduce(const BackwardParams& p, const Matrix& m, Columns<A>& columns, const T* dy, const T* x) {
    const int64_t C = m.C();
    std::vector<GradSums> sums(m.parts() * C);
    for_each_part(p.view, m, p.execution, [&](int64_t part) {
      ColumnGradSums<T, activation> part_sums(m.columns());
      part_sums.add_part(m, part, columns, dy, x);
      for (int64_t c = 0; c < C; ++c) sums[part * C + c] = part_sums.channel(c, C);
    });
    for (int64_t c = 0; c < C; ++c) {
      GradSums total;
      for (int64_t part = 0; part < m.parts(); ++part) total.add(sums[part * C + c]);
      write(p.grad_weight, c, total.grad_xhat);
      write(p.grad_bias, c, total.grad);
      columns.set_factors(c, grad_factors(p, columns.scale(c), total));
    }
  }
};

}  // namespace
}  // namespace fused_bn::cpu
