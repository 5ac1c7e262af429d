#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

Forced parse_forced(const std::string& text) {
  constexpr std::pair<const char*, std::optional<int64_t> Forced::*> kNumbers[] = {
      {"group", &Forced::group},
      {"groups", &Forced::groups},
      {"tile", &Forced::tile_channels},
      {"slots", &Forced::slots}};
  Forced forced;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    bool valid = word == "resident" || word == "streamed";
    if (valid) forced.resident = word == "resident";
    for (size_t i = 0; i < std::size(kExchanges); ++i) {
      if (word != std::string("exchange=") + kExchanges[i]) continue;
      forced.exchange = static_cast<Exchange>(i);
      valid = true;
    }
    const size_t digits = word.find('=') + 1;
    for (const auto& [name, member] : kNumbers) {
      const bool counts = digits > 0 && word.size() - digits - 1 < 9 &&
                          word.find_first_not_of("0123456789", digits) == word.npos && word[digits] != '0';
      if (!counts || word.substr(0, digits - 1) != name) continue;
      forced.*member = std::stoi(word.substr(digits));
      valid = true;
    }
    if (!valid) {
      throw std::invalid_argument(
          "a plan is 'resident' or 'streamed' and any of exchange=none|cluster|words, group=, groups=, tile= and "
          "slots= with a number from 1 to 999999999, but got '" +
          word + "'");
    }
  }
  return forced;
}

std::string describe(const Plan& plan) {
  std::ostringstream text;
  const bool first = plan.first.grid() > 0;
  const Tiling& t = first ? plan.first.tiling : plan.apply.tiling;
  if (plan.resident) {
    text << "resident exchange=" << kExchanges[static_cast<int>(plan.first.exchange)]
         << " slots=" << plan.first.slots << ' ';
  } else if (first) {
    text << "streamed ";
  }
  text << "group=" << t.group;
  if (plan.first.exchange == Exchange::words) text << " groups=" << t.groups;
  text << " tile=" << t.tile_channels;
  return text.str();
}

}  // namespace fused_bn::cuda
