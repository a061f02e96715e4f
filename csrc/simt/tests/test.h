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

struct Add {
  Add(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void expect(bool condition, const std::string& what, int line) {
  if (condition) return;
  ++failures;
  std::printf("  line %d: expected %s\n", line, what.c_str());
}


}  // namespace test

#define TEST(name)                                         \
  static void name();                                      \
  static const test::Add add_##name(#name, name);          \
  static void name()
#define EXPECT(condition) test::expect((condition), #condition, __LINE__)
