// Plans are enumerated, priced and compared: cut the work into slabs, give each slab to a group of blocks,
// keep as much as fits on chip, and take the plan with the least predicted time.
#include "cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "cuda/slabs.h"

namespace fused_bn::cuda {
namespace {

constexpr int kClusters[] = {2, 4, 8, 16};
constexpr int kFirstClusterArchitecture = 90;

// part / whole of value, rounded down.
int64_t share(int64_t value, int64_t part, int64_t whole) {
  __extension__ typedef __int128 wide;
  return static_cast<int64_t>(static_cast<wide>(value) * part / whole);
}

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

// ---- what is asked for

void check(const Problem& p) {
  const View& v = p.view;
  const auto at_least_one = [](const char* name, int64_t value) {
    if (value < 1)
      refuse(name, " must be at least 1 (nothing is launched for an empty tensor), but got ", value);
  };
  at_least_one("N", v.N);
  at_least_one("C", v.C);
  at_least_one("S", v.S);
  if (v.C > kMostChannels) refuse("C must be at most ", kMostChannels, ", but got ", v.C);
  if (v.N > kMostElements / v.C || v.N * v.C > kMostElements / v.S) {
    refuse("N * C * S must be at most ", kMostElements, ", but got ", v.N, " * ", v.C, " * ", v.S);
  }
  if (p.alignment < 1 || p.alignment > 16 || (p.alignment & (p.alignment - 1)) != 0) {
    refuse("alignment must be 1, 2, 4, 8 or 16, but got ", p.alignment);
  }
  if (p.alignment < std::min(element_bytes(p.dtype), 16)) {
    refuse("alignment must be at least an element's ", element_bytes(p.dtype), " bytes, but got ",
           p.alignment);
  }
}

void check(const Device& d) {
  const auto within = [&](const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most) {
      refuse("device '", d.name, "': ", name, " must be from ", least, " to ", most, ", but got ", value);
    }
  };
  const auto finite = [&](const char* name, double value, double least) {
    if (!std::isfinite(value) || value < least) {
      refuse("device '", d.name, "': ", name, " must be finite and at least ", least, ", but got ", value);
    }
  };
  within("multiprocessors", d.multiprocessors, 1, kMostBlocks);
  within("shared_per_block", d.shared_per_block, kSmallestShared, int64_t{1} << 30);
  within("l2_bytes", d.l2_bytes, 0, kMostElements);
  within("max_cluster", d.max_cluster, 1, d.architecture < kFirstClusterArchitecture ? 1 : 16);
  within("evaluation_blocks", d.evaluation_blocks, 1, kMostBlocks / d.multiprocessors);
  finite("dram_bandwidth", d.dram_bandwidth, 1);
  finite("l2_bandwidth", d.l2_bandwidth, 1);
  finite("l2_share", d.l2_share, 0);
  finite("launch_time", d.launch_time, 0);
  finite("cooperative_time", d.cooperative_time, 0);
  finite("barrier_time", d.barrier_time, 0);
  finite("cluster_time", d.cluster_time, 0);
  finite("turn_time", d.turn_time, 0);
  finite("run_64_penalty", d.run_64_penalty, 1);
  finite("run_32_penalty", d.run_32_penalty, 1);
  finite("headroom", d.headroom, 1);
  finite("partial_penalty", d.partial_penalty, 1);
}

// ---- which blocks take them

struct Team {
  Exchange exchange;
  int64_t group, groups;
};

// Every sensible way for `blocks` blocks: for each number of rounds the fewest groups, and as many blocks
// each as there are; and the fewest whose busiest has no more steps.
template <class Take>
void for_each_split(const Geometry& g, int64_t blocks, const Take& take) {
  int64_t last = 0;
  for (int64_t most = std::min<int64_t>(g.slabs, blocks); most >= 1; --most) {
    const int64_t groups = divide_up(g.slabs, divide_up(g.slabs, most));
    if (groups == last) continue;
    last = groups;
    const int64_t group = std::min<int64_t>(blocks / groups, g.steps);
    const int64_t fewest = divide_up(g.steps, divide_up(g.steps, group));
    take(group, groups);
    if (fewest < group) take(fewest, groups);
  }
}

// Blocks that wait for each other must all run at once, and one fills a multiprocessor.
template <class Take>
void for_each_team(const Geometry& g, const Problem& p, const Device& device, const Take& take) {
  const int64_t blocks = device.multiprocessors;
  if (p.direction == Direction::evaluation) {
    for_each_split(g, blocks * device.evaluation_blocks,
                   [&](int64_t group, int64_t groups) { take(Team{Exchange::none, group, groups}); });
    return;
  }
  const auto fewest_groups = [&](int64_t most) { return divide_up(g.slabs, divide_up(g.slabs, most)); };
  take(Team{Exchange::none, 1, fewest_groups(std::min<int64_t>(g.slabs, blocks))});
  for (const int size : kClusters) {
    if (size > std::min<int64_t>({device.max_cluster, g.steps, blocks})) break;
    take(Team{Exchange::cluster, size, fewest_groups(std::min<int64_t>(g.slabs, blocks / size))});
  }
  for_each_split(g, blocks, [&](int64_t group, int64_t groups) {
    if (device.cooperative && group > 1) take(Team{Exchange::barrier, group, groups});
  });
  for_each_split(g, blocks,
                 [&](int64_t group, int64_t groups) { take(Team{Exchange::two_kernels, group, groups}); });
}

// ---- what a plan comes to

// What a block of the group keeps between its two reads: registers first, then shared memory.
void retain(const Problem& p, const Device& device, Plan& plan) {
  Geometry& g = plan.geometry;
  const int tensors = tensors_read(p.direction);
  const bool may = g.whole && p.direction != Direction::evaluation && plan.exchange != Exchange::two_kernels;
  if (may)
    g.register_steps =
        register_steps(p.dtype, p.direction == Direction::backward, g.mapping, curve_of(p.activation));
  const auto layout = [&] {
    return SharedLayout::of(g, tensors, element_bytes(p.dtype), compute_bytes(p.dtype));
  };
  if (may) {
    const int64_t left = device.shared_per_block - layout().bytes;
    const int64_t step = int64_t{tensors} * kVector * element_bytes(p.dtype) * g.threads;
    const int64_t needed = divide_up(g.steps, g.group) - g.register_steps;
    g.shared_steps = static_cast<int>(std::max<int64_t>(0, std::min(left / step, needed)));
  }
  plan.layout = layout();
}

// Steps of a slab that its group keeps.
int64_t retained_steps(const Geometry& g) {
  const int64_t kept = int64_t{g.register_steps} + g.shared_steps;
  const int64_t fewer = g.steps / g.group, longer_blocks = g.steps % g.group;
  return longer_blocks * std::min(fewer + 1, kept) + (g.group - longer_blocks) * std::min(fewer, kept);
}

struct Workload {
  int64_t twice;  // bytes read by both passes, once each
  int64_t once;   // bytes read once
  int64_t written;
};

Workload workload(const Problem& p, const Geometry& g) {
  const int64_t tensor = g.elements * element_bytes(p.dtype);
  const int64_t residual = p.residual ? tensor : 0;
  const int64_t mask = p.residual && has_mask(p.activation) ? mask_bytes(g) : 0;
  // Backward reads it in both passes, and keeps nothing of it in between.
  const int64_t saved = p.residual && !has_two_slopes(p.activation) ? tensor : 0;
  switch (p.direction) {
    case Direction::forward:
      return {tensor, residual, tensor + mask};
    case Direction::backward:
      return {2 * tensor, 2 * (mask + saved), tensor + residual};
    case Direction::evaluation:
      break;
  }
  return {0, tensor + residual, tensor};
}

// Other groups use the memory while one turns from reading to writing, but not in the first round, which all
// begin at once.
double turns(const Problem& p, const Device& device, const Plan& plan) {
  if (p.direction == Direction::evaluation) return device.turn_time;
  const Geometry& g = plan.geometry;
  const double share_of_device = std::min(1.0, static_cast<double>(g.group) / device.multiprocessors);
  const double count = 1 + static_cast<double>(plan.rounds() - 1) * share_of_device;
  switch (plan.exchange) {
    case Exchange::none:
      break;
    case Exchange::cluster:
      return count * (device.turn_time + device.cluster_time);
    case Exchange::barrier:
      return count * (device.turn_time + device.barrier_time) + device.cooperative_time;
    case Exchange::two_kernels:
      return 2 * device.turn_time;
  }
  return count * device.turn_time;
}

// Times as long a byte takes as in long aligned runs.
double access_penalty(const Problem& p, const Device& device, const Geometry& g) {
  double penalty = g.whole ? 1 : device.partial_penalty;
  if (g.slabs == 1) return penalty;  // all of a tensor is one run
  const int64_t elements = g.mapping == Mapping::rows ? g.S : g.slab_columns;
  const int64_t run = elements * element_bytes(p.dtype);
  if (run < 128) penalty *= run < 64 ? device.run_32_penalty : device.run_64_penalty;
  if (run < 32) penalty *= 32.0 / static_cast<double>(run);
  return penalty;
}

// The share of the bandwidth that is drawn: less where many multiprocessors, lanes or threads have nothing to
// do, or wait for a block with more steps.
double utilisation(const Device& device, const Plan& plan) {
  const Geometry& g = plan.geometry;
  const double busiest = static_cast<double>(divide_up(plan.grid, device.multiprocessors)) *
                         static_cast<double>(plan.rounds()) *
                         static_cast<double>(divide_up(g.steps, g.group));
  const double busy =
      static_cast<double>(g.elements) / (busiest * device.multiprocessors * g.threads * kVector);
  return std::min(1.0, busy * device.headroom);
}

void price(const Problem& p, const Device& device, Plan& plan) {
  constexpr double kPerMicrosecond = 1e3;  // bytes, at one GB/s
  const Geometry& g = plan.geometry;
  const Workload work = workload(p, g);
  const int64_t at_once =
      plan.exchange == Exchange::two_kernels ? g.slabs : std::min<int64_t>(g.groups, g.slabs);
  Traffic& t = plan.traffic;
  t.retained = share(work.twice, retained_steps(g), g.steps);
  t.retained_at_once = share(t.retained, at_once, g.slabs);
  const int64_t again = work.twice - t.retained;
  // The second read goes backwards, so that L2 still holds the end of the first one.
  const double in_flight =
      static_cast<double>(again) * static_cast<double>(at_once) / static_cast<double>(g.slabs);
  const double usable = device.l2_share * static_cast<double>(device.l2_bytes);
  const double hit_rate = in_flight > usable ? usable / in_flight : 1;
  t.l2_hits = static_cast<int64_t>(static_cast<double>(again) * hit_rate);
  t.read = work.twice + work.once + again;
  t.written = work.written;

  // Every block of a group reads the sums of all of them.
  const double blocks = g.group > 1 && p.direction != Direction::evaluation ? g.group : 0;
  const double sums =
      static_cast<double>(g.slabs) * blocks * blocks * 2 * g.slab_channels * compute_bytes(p.dtype);
  const double dram = static_cast<double>(t.read - t.l2_hits) + static_cast<double>(t.written);
  const double l2 = static_cast<double>(t.l2_hits) + sums;
  const double moving = dram / device.dram_bandwidth + l2 / device.l2_bandwidth;
  const double slower = access_penalty(p, device, g) / utilisation(device, plan);
  plan.floor_time =
      static_cast<double>(work.twice + work.once + work.written) / (device.dram_bandwidth * kPerMicrosecond);
  plan.predicted_time =
      plan.launches() * device.launch_time + turns(p, device, plan) + moving * slower / kPerMicrosecond;
}

Plan plan_for(const Problem& p, const Device& device, const Geometry& slabs, const Team& team) {
  Plan plan{};
  plan.geometry = slabs;
  Geometry& g = plan.geometry;
  g.group = static_cast<int>(team.group);
  g.groups = static_cast<int>(team.groups);
  plan.exchange = team.exchange;
  plan.grid = team.group * team.groups;
  retain(p, device, plan);
  const int64_t sums = int64_t{2} * g.group * g.slab_channels * compute_bytes(p.dtype);
  plan.words = 1;
  if (plan.exchange == Exchange::barrier) {
    plan.words = g.groups + 1;
    plan.workspace_bytes = int64_t{2} * g.groups * sums;
  }
  if (plan.exchange == Exchange::two_kernels) plan.workspace_bytes = g.slabs * sums / 2 * 3;
  price(p, device, plan);
  return plan;
}

std::optional<Plan> cheapest(const Problem& p, const Device& device, std::optional<Exchange> only) {
  check(p);
  check(device);
  const int64_t sign = p.direction == Direction::evaluation ? -1 : 1;
  std::optional<Plan> best;
  for (const Geometry& slabs : slabs_for(p, device.shared_per_block)) {
    for_each_team(slabs, p, device, [&](const Team& team) {
      if (only && *only != team.exchange) return;
      const Plan plan = plan_for(p, device, slabs, team);
      const bool better =
          !best || plan.predicted_time < best->predicted_time ||
          (plan.predicted_time == best->predicted_time && sign * plan.grid < sign * best->grid);
      if (better) best = plan;
    });
  }
  return best;
}

[[noreturn]] void refuse_shape(const View& v, const char* why) {
  refuse("no kernel for N = ", v.N, ", C = ", v.C, ", S = ", v.S, ": ", why);
}

}  // namespace

Plan make_plan(const Problem& problem, const Device& device) {
  const std::optional<Plan> plan = cheapest(problem, device, std::nullopt);
  if (!plan)
    refuse_shape(problem.view, "N * (S / 8)^2 must be below 2^64, and a slab have less than 2^31 steps");
  return *plan;
}

Plan make_plan(const Problem& problem, const Device& device, Exchange exchange) {
  const std::optional<Plan> plan = cheapest(problem, device, exchange);
  if (!plan) refuse_shape(problem.view, "no plan has the exchange that was asked for on this device");
  return *plan;
}

Plan without_gathering(const Problem& p, Plan plan) {
  Geometry& g = plan.geometry;
  g.register_steps = g.shared_steps = 0;
  plan.exchange = Exchange::none;
  plan.layout =
      SharedLayout::of(g, tensors_read(p.direction), element_bytes(p.dtype), compute_bytes(p.dtype));
  plan.workspace_bytes = 0;
  plan.words = 1;
  return plan;
}

bool has_mask(Activation activation) { return activation != Activation::none && has_two_slopes(activation); }

int64_t mask_bytes(const Geometry& g) {
  if (g.mapping == Mapping::rows) return g.N * g.C * static_cast<int64_t>(g.row_vectors.divisor);
  return g.rows * divide_up(g.row_length, kVector);
}

std::string describe(const Plan& plan) {
  constexpr const char* kMappings[] = {"rows", "columns"};
  constexpr const char* kExchanges[] = {"none", "cluster", "barrier", "two_kernels"};
  const Geometry& g = plan.geometry;
  std::ostringstream text;
  text << "mapping " << kMappings[static_cast<int>(g.mapping)] << (g.whole ? "" : ", partial vectors")
       << "\nslabs " << g.slabs << " of " << g.slab_channels << " channels, " << g.steps << " steps"
       << "\ngrid " << plan.grid << ": " << g.groups << " groups of " << g.group << ", " << plan.rounds()
       << " rounds"
       << "\nexchange " << kExchanges[static_cast<int>(plan.exchange)] << "\nsteps kept " << g.register_steps
       << " in registers, " << g.shared_steps << " in shared memory"
       << "\nshared_bytes " << plan.layout.bytes << "\nworkspace_bytes " << plan.workspace_bytes << "\nwords "
       << plan.words << "\nread " << plan.traffic.read << "\nwritten " << plan.traffic.written
       << "\nretained " << plan.traffic.retained << "\nl2_hits " << plan.traffic.l2_hits
       << "\npredicted_time " << plan.predicted_time << " us, floor " << plan.floor_time << " us";
  return text.str();
}

}  // namespace fused_bn::cuda
