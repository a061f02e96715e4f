// Runs the tests that are linked with it, or those named; prints "PASS name" or "FAIL name".
#include <cstring>
#include <exception>

#include "test.h"

int main(int argc, char** argv) {
  int failed = 0;
  for (const test::Case& one : test::cases()) {
    bool chosen = argc == 1;
    for (int i = 1; i < argc; ++i) chosen |= std::strcmp(argv[i], one.name) == 0;
    if (!chosen) continue;
    test::failures = 0;
    for (const test::Schedule& schedule : test::kSchedules) {
      simt::set_schedule(schedule.order, schedule.seed);
      try {
        one.run();
      } catch (const std::exception& error) {
        test::expect(false, std::string("no exception, got ") + error.what(), 0);
      }
    }
    failed += test::failures > 0;
    std::printf("%s %s\n", test::failures ? "FAIL" : "PASS", one.name);
  }
  return failed > 0;
}
