// Predicts times from measurements on an H200 (tests/planner/test_plan_prices.py), scaled by a device's
// bandwidths.
#include <algorithm>
#include <cmath>

#include "cuda/planner/internal.h"

namespace fused_bn::cuda {
namespace {

// Shares of the specified 4.8 TB/s of device memory: a copy by the driver; reads; writes beside as many reads
// (4.0 together). kReadRuns, kWriteRuns: the shares of these that runs of 32, 64, 128 and 256 bytes reach.
constexpr double kCopy = 4.2 / 4.8, kRead = 4.45 / 4.8, kWrite = 3.63 / 4.8;
constexpr double kReadRuns[] = {0.73, 0.84, 0.99, 1.0}, kWriteRuns[] = {0.40, 0.67, 0.84, 0.97};
constexpr double kL2Kept = 0.5;  // the share of L2 from which a second read, backwards, is served
constexpr double kAlone = 1.6;   // how many times its share of L2's bandwidth one multiprocessor can draw

// Microseconds. kLaunch: a node of a graph. kStart: a kernel before its first vectors arrive and after its
// last. kLatency: a load. kCluster: an exchange in a cluster. kWords: a hop of words; kLoaded more beside
// other blocks' transfers. kMerge: a batch of the group's partial results.
constexpr double kLaunch = 0.54, kStart = 0.86, kLatency = 0.6, kCluster = 0.35, kWords = 0.6, kLoaded = 1.4,
                 kMerge = 0.2;
// Microseconds of a block beside transfers and arithmetic. kSums: adding its threads' sums. kStatistics:
// forward's pivots and statistics. kMixed: each element of a mixed vector.
constexpr double kSums = 0.2, kStatistics = 0.4, kMixed = 0.22;

// Instructions per element, counted in the prototypes' SASS; backward's are for x and dy together. Kernels of
// single elements take kNarrow more. A multiprocessor with enough warps issues four per clock at 1.98 GHz.
struct Instructions {
  double resident, reduce, apply;
};
constexpr Instructions kForward = {9, 6, 5}, kBackward = {18, 12, 11};
constexpr double kNarrow = 10, kIssued = 4 * 32 * 1.98e3, kEnoughThreads = 512;
// Vectors of each tensor that a thread loads at once, as in the kernels.
constexpr double kInFlight = 4, kInForwardReduce = 8;

// Returns the share of time in which the server of a closed queue with exponential times is busy. Its
// customers, blocks or groups, transfer (are served), and compute or wait (think).
double utilisation(double customers, double service, double thinking) {
  double sum = 1, term = 1;
  for (double left = customers; left > 0; --left) {
    term *= left * service / thinking;
    sum += term;
  }
  return 1 - 1 / sum;
}

double left_of(const double (&runs)[4], int64_t run) {
  if (run >= 512) return 1;
  int index = 0;
  while (index < 3 && run >= int64_t{64} << index) ++index;
  return runs[index] * std::min(1.0, static_cast<double>(run) / 32);
}

class Price {
 public:
  Price(const Problem& p, const Device& d, const Plan& plan)
      : p_(p),
        d_(d),
        plan_(plan),
        forward_(p.direction == Direction::forward),
        each_(forward_ ? kForward : kBackward) {
    const double tensor = static_cast<double>(p.view.elements() * element_bytes(p.dtype));
    const double added = p.residual ? tensor : 0;
    const bool masked = p.residual && needs_mask(p.activation);
    const double mask = masked ? static_cast<double>(mask_bytes(p.view.elements())) : 0;
    // Backward reads the mask or the residual to find the slopes.
    const double saved = masked ? mask : p.activation == Activation::none ? 0 : added;
    const double first = forward_ ? tensor : 2 * tensor + saved;
    if (p.part != Part::apply && !plan.resident) sums_.read = first;
    if (p.part == Part::reduce) return;
    results_.read = forward_ ? tensor + added : first;
    results_.written = tensor + (!forward_ ? added : p.part == Part::both ? mask : 0);
    results_.l2_hits = std::min(sums_.read, kL2Kept * static_cast<double>(d.l2_bytes));
  }

  Traffic traffic() const { return {sums_.read + results_.read, results_.written, results_.l2_hits}; }

  double floor() const {
    const bool reads = p_.part == Part::reduce;
    const double bytes = reads ? sums_.read : results_.read + results_.written;
    return kLaunch + kStart + bytes / ((reads ? kRead : kCopy) * d_.memory_bandwidth * 1e3);
  }

  double predicted() const {
    if (plan_.resident) return kLaunch + resident();
    const bool is_plain = p_.part == Part::both && d_.architecture < 90;  // no programmatic dependent launch
    return kLaunch + (is_plain ? kLaunch : 0) + (p_.part == Part::apply ? 0 : reduce()) +
           (p_.part == Part::reduce ? 0 : passing(results_, each_.apply, plan_.apply, kInFlight));
  }

 private:
  double on(double blocks) const { return std::min(blocks, static_cast<double>(d_.multiprocessors)); }

  double moving(const Traffic& b, const Tiling& t, double blocks) const {
    const int64_t run = run_bytes(t, p_.dtype);
    const double memory = (b.read - b.l2_hits) / (kRead * d_.memory_bandwidth * left_of(kReadRuns, run)) +
                          b.l2_hits / d_.l2_bandwidth +
                          b.written / (kWrite * d_.memory_bandwidth * left_of(kWriteRuns, run));
    return std::max(memory / 1e3, (b.read + b.written) / (alone() * on(blocks)));
  }
  // Bytes per microsecond of one multiprocessor.
  double alone() const { return kAlone * d_.l2_bandwidth * 1e3 / d_.multiprocessors; }

  double computing(double each, const Tiling& t, double blocks) const {
    const int64_t lanes =
        t.walk == Walk::down_columns ? t.pass_rows * t.tile_vectors : divide_up(t.units, t.group);
    const double busy = static_cast<double>(std::min<int64_t>(lanes, t.threads)) / t.threads;
    const double enough = std::min(1.0, blocks / on(blocks) * t.threads / kEnoughThreads) * busy;
    const double all = static_cast<double>(p_.view.elements()) * (each + (t.vector == 1 ? kNarrow : 0));
    return all / (kIssued * on(blocks) * enough);
  }

  // From a block's sums to its channels' results, without the exchange.
  double finishing(const Tiling& t) const {
    return kSums + (forward_ ? kStatistics : 0) + (t.mixed ? kMixed * t.vector : 0);
  }
  // Merging a group's partial results by the lanes that share a channel.
  static double merging(const Tiling& t, int64_t channels) {
    int64_t lanes = 32;
    while (lanes > 1 && lanes * channels > t.threads) lanes /= 2;
    return kMerge * static_cast<double>(divide_up(t.group, 4 * lanes));
  }
  double exchanging(const Tiling& t) const {
    if (plan_.first.exchange == Exchange::none) return 0;
    if (plan_.first.exchange == Exchange::cluster) return kCluster;
    const bool owners = words_have_owners(t.group, t.tile_channels);
    return (owners ? 2 : 1) * kWords +
           merging(t, owners ? divide_up(t.tile_channels, t.group) : t.tile_channels);
  }

  double blocks_at_once() const {
    const Tiling& t = plan_.first.tiling;
    if (plan_.first.exchange == Exchange::words) return static_cast<double>(plan_.first.grid());
    if (plan_.first.exchange == Exchange::none) return d_.multiprocessors * plan_.blocks_per_multiprocessor;
    return static_cast<double>(active_clusters(d_, t.group, plan_.blocks_per_multiprocessor)) * t.group;
  }

  // Blocks run in generations, or groups in iterations: each transfers, computes, exchanges and transfers.
  double resident() const {
    const Tiling& t = plan_.first.tiling;
    const bool words = plan_.first.exchange == Exchange::words;
    const double blocks = static_cast<double>(t.tiles) * t.group,
                 at_once = std::min(blocks, blocks_at_once());
    const double generations = blocks / at_once, full = std::floor(generations);
    const double work = computing(each_.resident, t, at_once);
    const double time = std::max(moving(results_, t, at_once), work);
    const double thinking = finishing(t) + exchanging(t) + work / generations;
    double turns = std::max(1.0, at_once / d_.multiprocessors), in_turn = thinking;
    if (words) {
      turns = std::min(turns, static_cast<double>(t.groups));
      // The next tile is loaded while results are computed.
      in_turn += (turns > 1 ? kLoaded : 0) - work / generations * each_.apply / (each_.reduce + each_.apply);
    }
    const double idle = 1 / utilisation(turns, time / generations / turns, in_turn) - 1;
    const double whole = kStart + thinking + time * (1 + idle * (1 - 1 / generations));
    if (generations == full) return whole;
    const double last = thinking + (results_.read + results_.written) / blocks / alone();
    return whole + (full + 1 - generations) * last / full;
  }

  // A pass in which each thread loads some vectors, computes with them, and loads the next ones.
  double passing(const Traffic& b, double each, const Launch& launch, double in_flight) const {
    const Tiling& t = launch.tiling;
    const double blocks = static_cast<double>(launch.grid());
    const double turns = std::min(blocks / on(blocks), static_cast<double>(plan_.blocks_per_multiprocessor));
    const double work = computing(each, t, turns * on(blocks));
    const double time = std::max(moving(b, t, blocks), work);
    const double chunks = blocks * std::max(1.0, static_cast<double>(t.passes) / in_flight) / on(blocks);
    return kStart + time / utilisation(turns, time / chunks, kLatency + work / chunks);
  }
  double reduce() const {
    const Tiling& t = plan_.first.tiling;
    const double merged = t.group > 1 ? kWords + merging(t, t.tile_channels) : 0;
    const double in_flight = forward_ ? kInForwardReduce : kInFlight;
    return passing(sums_, each_.reduce, plan_.first, in_flight) + finishing(t) + merged;
  }

  const Problem& p_;
  const Device& d_;
  const Plan& plan_;
  const bool forward_;
  const Instructions each_;
  Traffic sums_, results_;
};

}  // namespace

int64_t active_clusters(const Device& device, int cluster, int blocks_per_multiprocessor) {
  size_t index = 0;
  while (1 << index < cluster) ++index;
  const int active = std::min(device.active_clusters[index], device.multiprocessors >> index);
  return int64_t{active} * blocks_per_multiprocessor;
}

void price(const Problem& problem, const Device& device, Plan& plan) {
  const Price price(problem, device, plan);
  plan.traffic = price.traffic();
  plan.floor_time = price.floor();
  plan.predicted_time = price.predicted();
}

}  // namespace fused_bn::cuda
