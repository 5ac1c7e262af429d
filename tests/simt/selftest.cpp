// `selftest NAME` runs one case. A fault prints its error text and exits with 1. test_executor.py has the
// expected results.
#include "selftest.h"

#include <cstdio>

int main(int count, char** arguments) {
  const std::string name = count == 2 ? arguments[1] : "";
  for (const auto* cases : {&selftest::kWorks, &selftest::kFaults, &selftest::kRaces}) {
    const auto found = cases->find(name);
    if (found == cases->end()) continue;
    try {
      found->second();
      return 0;
    } catch (const std::exception& error) {
      std::printf("%s\n", error.what());
      return 1;
    }
  }
  std::printf("no such case: %s\n", name.c_str());
  return 2;
}
