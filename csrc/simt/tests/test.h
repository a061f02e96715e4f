// The little that the emulator's tests need: named tests, expectations, every schedule.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/simt.cuh"

namespace test {

struct Schedule {
  simt::Order order;
  uint64_t seed;
};
inline const std::vector<Schedule> kSchedules = {{simt::Order::ascending, 0},
                                                 {simt::Order::descending, 0},
                                                 {simt::Order::random, 1},
                                                 {simt::Order::random, 2},
                                                 {simt::Order::random, 3}};

struct Case {
  const char* name;
  void (*run)();
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
inline int failures = 0;

// What the emulator says of a launch; empty when it finds nothing wrong.
template <typename Launch>
std::string report_of(const Launch& launch) {
  try {
    launch();
  } catch (const simt::Error& error) {
    return error.what();
  }
  return "";
}

struct Add {
  Add(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void expect(bool condition, const std::string& what, int line) {
  if (condition) return;
  ++failures;
  std::printf("  line %d: expected %s\n", line, what.c_str());
}

// That each of the parts stands in the report.
inline void expect_report(const std::string& report, const std::vector<std::string>& parts, int line) {
  for (const std::string& part : parts) {
    expect(report.find(part) != std::string::npos, "a report with \"" + part + "\", got: " + report, line);
  }
}

}  // namespace test

#define TEST(name)                                \
  static void name();                             \
  static const test::Add add_##name(#name, name); \
  static void name()
#define EXPECT(condition) test::expect((condition), #condition, __LINE__)
