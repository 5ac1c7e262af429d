#include "cuda/planner/plan.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "cuda/planner/internal.h"

namespace fused_bn::cuda {
namespace {

constexpr int64_t kReservedShared = 1024;  // bytes of a multiprocessor, per block
constexpr int kFirstWordsArchitecture = 80;
constexpr int64_t kMostChannels = int64_t{1} << 29;
constexpr int64_t kMostBlocks = int64_t{1} << 30;  // of a grid
constexpr int64_t kMostRange = int64_t{1} << 31;   // vectors that a block of the resident kernel spans

// Blocks per multiprocessor of the reduce pass; vectors per thread; blocks per multiprocessor of the apply
// pass beyond which threads get more vectors. Backward of 411 MB: 516 us with up to 16 vectors, 575 us
// with 4.
constexpr int kReduceBlocks[] = {1, 2, 4};
constexpr int64_t kInFlight = 4, kApplyBlocks = 2, kMostBackward = 16;

// The error of predictions: a tensor that fits is streamed only if that is predicted to be clearly faster.
constexpr double kDoubt = 1.1;

template <class... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

class Planner {
 public:
  Planner(const Problem& p, const Device& d, const Forced& forced) : p_(p), d_(d), forced_(forced) {}

  Plan best() {
    const bool resident = forced_.resident.value_or(true);
    const bool streamed = !forced_.resident.value_or(forced_.exchange || forced_.slots || forced_.groups);
    if (p_.part == Part::both && resident) try_resident();
    if (p_.part == Part::reduce || (p_.part == Part::both && streamed)) try_reduce();
    if (p_.part == Part::apply) try_apply(Plan{}, forced_.tile_channels);
    if (reason_.empty()) refused("no tile", of_so_many(), " has between 1 and 2^30 vectors a row");
    if (best_) return *best_;
    const View& v = p_.view;
    throw std::invalid_argument(
        joined("no plan for N = ", v.N, ", C = ", v.C, ", S = ", v.S, " on ", d_.name, ": ", reason_));
  }

 private:
  // ---- resident

  void try_resident() {
    if (p_.dtype == DType::f64) return refused("the resident kernel knows no f64");
    const std::vector<Tiling> tilings = tilings_for(p_, Kernel::resident, forced_.tile_channels);
    if (tilings.empty())
      refused("no tile", of_so_many(), " suits the resident kernel: whole vectors of 16 bytes");
    for (const Tiling& t : tilings) {
      if (wants(Exchange::none)) try_separate(t, Exchange::none, forced_.group.value_or(1));
      for (int size = 2; size <= 16 && !forced_.group && wants(Exchange::cluster); size *= 2) {
        if (size <= d_.max_cluster && size <= t.passes) try_separate(t, Exchange::cluster, size);
      }
      if (forced_.group && wants(Exchange::cluster)) try_separate(t, Exchange::cluster, *forced_.group);
      if (wants(Exchange::words)) try_words(t);
    }
  }

  bool wants(Exchange exchange) const {
    if (forced_.exchange) return *forced_.exchange == exchange;
    if (forced_.groups) return exchange == Exchange::words;
    const int64_t group = forced_.group.value_or(0);
    if (exchange == Exchange::none) return group <= 1;
    return group != 1 && (exchange == Exchange::words || group <= d_.max_cluster);
  }

  // Each tile has its own group.
  void try_separate(Tiling t, Exchange exchange, int64_t group) {
    const bool alone = exchange == Exchange::none;
    const int64_t least = alone ? 1 : 2, most = alone ? 1 : d_.max_cluster;
    if (group < least || group > most) {
      return refused("exchange ", kExchanges[static_cast<int>(exchange)], " takes groups of ", least, " to ",
                     most, " blocks, not ", group);
    }
    t.group = static_cast<int32_t>(group);
    if (active_clusters(d_, t.group, 1) < 1) return refused("no cluster of ", group, " blocks runs");
    try_slots(t, exchange);
  }

  // All blocks run at once; groups take tiles in turn.
  void try_words(const Tiling& t) {
    const bool can = d_.cooperative && d_.architecture >= kFirstWordsArchitecture;
    if (!can) return refused("words need cooperative launches and sm_80 or later");
    const int64_t rest = layout_of(t, Kernel::resident, 0, Exchange::words).bytes;
    for (int blocks = blocks_per_multiprocessor(t, Kernel::resident, rest); blocks >= 1; --blocks) {
      const int64_t own =
          std::min(d_.shared_per_multiprocessor / blocks - kReservedShared, d_.shared_per_block);
      const int64_t slots = forced_.slots.value_or((own - rest) / slot_bytes());
      if (slots > 0) try_words(t, int64_t{blocks} * d_.multiprocessors, slots);
    }
  }

  void try_words(Tiling t, int64_t blocks, int64_t slots) {
    const int64_t least = std::max<int64_t>(2, divide_up(t.units, slots * t.pass_units));
    const int64_t wanted = forced_.group.value_or(least);
    if (wanted > blocks)
      return refused("a group of ", wanted, " blocks is too large: ", blocks, " run at once");
    const int64_t iterations = divide_up(t.tiles, std::min<int64_t>(t.tiles, blocks / wanted));
    const int64_t even = divide_up(t.tiles, iterations), useful = std::max(least, t.passes);
    const int64_t groups = std::min<int64_t>(t.tiles, forced_.groups.value_or(even));
    t.groups = static_cast<int32_t>(groups);
    t.group = static_cast<int32_t>(forced_.group.value_or(std::clamp(blocks / groups, least, useful)));
    const int64_t words = words_of(groups, t.group, t.tile_channels);
    if (words > kMostWords)
      return refused("the exchange takes ", words, " words, and there are ", kMostWords);
    try_slots(t, Exchange::words);
  }

  void try_slots(Tiling t, Exchange exchange) {
    t.derive();
    if (!fits(t, t.units)) return;
    const int64_t needed = t.passes, slots = forced_.slots.value_or(needed);
    if (slots < needed) return refused("a thread needs ", needed, " slots, not ", slots);
    const int64_t units = divide_up(t.units, t.group);
    const int64_t rows = t.walk == Walk::down_columns ? units : units / t.tile_vectors + 2;
    if (rows * t.row_vectors >= kMostRange) return refused("a block would span ", rows, " rows");
    const int64_t rest = layout_of(t, Kernel::resident, 0, exchange).bytes;
    const int64_t bytes = slots * slot_bytes() + rest;
    if (bytes > d_.shared_per_block) {
      return refused(slots, " slots take ", bytes, " bytes of shared memory: a block has ",
                     d_.shared_per_block);
    }
    Plan plan = with_launch({}, &Plan::first, t, Kernel::resident, static_cast<int>(slots), exchange);
    plan.resident = true;
    const int64_t at_once = int64_t{plan.blocks_per_multiprocessor} * d_.multiprocessors;
    if (exchange == Exchange::words && plan.first.grid() > at_once) {
      return refused(plan.first.grid(), " blocks are too many: ", at_once, " run at once");
    }
    take(plan);
  }

  int kept() const { return tensors_kept(p_.direction, p_.residual); }
  int64_t slot_bytes() const { return int64_t{16} * kThreads * kept(); }

  int blocks_per_multiprocessor(const Tiling& t, Kernel kernel, int64_t shared_bytes) const {
    const int64_t by_shared = d_.shared_per_multiprocessor / (shared_bytes + kReservedShared);
    const bool backward = p_.direction == Direction::backward;
    const int64_t by_registers =
        blocks_by_registers(d_.architecture, kernel, backward, t.mixed, kind_of(p_.activation));
    const int64_t by_threads = d_.threads_per_multiprocessor / kThreads;
    return static_cast<int>(std::max<int64_t>(1, std::min({by_shared, by_registers, by_threads})));
  }

  // ---- streamed

  void try_reduce() {
    reason_.clear();
    for (const Tiling& t : tilings_for(p_, Kernel::reduce, forced_.tile_channels)) {
      const int64_t most = t.tiles > kMostGroups ? 1 : divide_up(t.passes, kInFlight);
      for (const int blocks : kReduceBlocks) {
        const int64_t even = std::clamp<int64_t>(int64_t{blocks} * d_.multiprocessors / t.tiles, 1, most);
        try_reduce(t, forced_.group.value_or(even));
      }
    }
  }

  void try_reduce(Tiling t, int64_t group) {
    const int64_t passes = t.passes;
    if (group > 1 && t.tiles > kMostGroups) return refused("blocks share at most ", kMostGroups, " tiles");
    t.group = static_cast<int32_t>(group);
    t.interleaved = 1;  // the end of the tensor is read last
    t.derive();
    t.interleaved = is_countable(t);
    t.derive();
    if (!fits(t, passes)) return;
    Plan plan = with_launch({}, &Plan::first, t, Kernel::reduce);
    if (group > 1) plan.partials_bytes = t.C * group * 4 * compute_bytes(p_.dtype);
    p_.part == Part::reduce ? take(plan) : try_apply(plan, std::nullopt);
  }

  void try_apply(const Plan& plan, std::optional<int64_t> tile_channels) {
    for (Tiling t : tilings_for(p_, Kernel::apply, tile_channels)) {
      t.group = apply_group(t);
      t.derive();
      if (fits(t, t.units)) take(with_launch(plan, &Plan::apply, t, Kernel::apply));
    }
  }

  int32_t apply_group(const Tiling& t) const {
    if (p_.part == Part::apply && forced_.group) return static_cast<int32_t>(*forced_.group);
    const int64_t all = t.passes * t.tiles / d_.multiprocessors;
    int64_t each = std::clamp<int64_t>(all / kApplyBlocks, 1, kInFlight);
    if (p_.direction == Direction::backward) each = std::clamp(all / kMostBackward, each, kMostBackward);
    return static_cast<int32_t>(std::clamp<int64_t>(divide_up(t.passes, each), 1, kMostBlocks / t.tiles));
  }

  SharedLayout layout_of(const Tiling& t, Kernel kernel, int slots, Exchange exchange) const {
    return shared_layout(t, kernel, slots, kept(), compute_bytes(p_.dtype), exchange, p_.activation);
  }

  Plan with_launch(Plan plan, Launch Plan::* launch, const Tiling& t, Kernel kernel, int slots = 0,
                   Exchange exchange = Exchange::none) const {
    const auto layout = layout_of(t, kernel, slots, exchange);
    plan.*launch = {t, layout, exchange, slots};
    const int blocks = blocks_per_multiprocessor(t, kernel, layout.bytes);
    if (plan.blocks_per_multiprocessor == 0) plan.blocks_per_multiprocessor = blocks;
    return plan;
  }

  // ---- all

  // Whether each block gets a part of its tile, and the grid is not too large.
  bool fits(const Tiling& t, int64_t parts) {
    const int64_t blocks = int64_t{t.groups} * t.group;
    if (t.group > parts) refused("a tile has ", parts, " parts, not one for each of ", t.group, " blocks");
    if (blocks > kMostBlocks) refused("a grid has at most ", kMostBlocks, " blocks, not ", blocks);
    if (!is_countable(t)) refused(t.rows, " rows of ", t.row_vectors, " vectors are beyond 32-bit offsets");
    return t.group <= parts && blocks <= kMostBlocks && is_countable(t);
  }

  void take(Plan plan) {
    price(p_, d_, plan);
    const double doubt = best_ && best_->resident && !plan.resident ? kDoubt : 1;
    if (!best_ || plan.predicted_time * doubt < best_->predicted_time) best_ = plan;
  }

  // Keeps the reason why the first candidate was refused.
  template <class... Parts>
  void refused(const Parts&... parts) {
    if (!best_ && reason_.empty()) reason_ = joined(parts...);
  }

  std::string of_so_many() const {
    return forced_.tile_channels ? joined(" of ", *forced_.tile_channels, " channels") : "";
  }

  const Problem& p_;
  const Device& d_;
  const Forced& forced_;
  std::optional<Plan> best_;
  std::string reason_;
};

}  // namespace

Plan make_plan(const Problem& problem, const Device& device, const Forced& forced) {
  if (problem.view.C > kMostChannels) {
    throw std::invalid_argument(joined("C must be at most ", kMostChannels, ", but got ", problem.view.C));
  }
  // Options of the resident kernel do not apply to the apply pass alone.
  const bool of_resident =
      forced.resident.value_or(false) || forced.exchange || forced.slots || forced.groups;
  const Forced own = problem.part == Part::apply && of_resident ? Forced{} : forced;
  return Planner(problem, device, own).best();
}

}  // namespace fused_bn::cuda
