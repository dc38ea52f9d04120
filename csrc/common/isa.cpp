#include "isa.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "parallel.h"

namespace fk {
namespace {

bool can_run(Isa i) {
#if defined(__x86_64__) && !defined(FK_BASELINE_ONLY)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (i == Isa::avx2) return avx2;
  if (i == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
#endif
  return i == Isa::baseline;
}

Isa largest() { return can_run(Isa::avx512) ? Isa::avx512 : can_run(Isa::avx2) ? Isa::avx2 : Isa::baseline; }

bool parse(const std::string& name, Isa* out) {
  for (Isa i : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (name == isa_name(i) && can_run(i)) {
      *out = i;
      return true;
    }
  return false;
}

Isa from_environment() {
  Isa i = largest();
  if (const char* name = std::getenv("FLOWKERNELS_ISA")) parse(name, &i);
  return i;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{from_environment()};
  return value;
}

std::atomic<bool> forked{false};
const int watch_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

bool in_forked_child() { return forked.load(std::memory_order_relaxed); }

Isa isa() { return chosen().load(std::memory_order_relaxed); }

const char* isa_name(Isa i) {
#if defined(__aarch64__)
  return i == Isa::baseline ? "neon" : "none";
#else
  return i == Isa::avx512 ? "avx512" : i == Isa::avx2 ? "avx2" : "baseline";
#endif
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (Isa i : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (can_run(i)) names.push_back(isa_name(i));
  return names;
}

void use_isa(const std::string& name) {
  Isa i;
  if (!parse(name, &i)) {
    std::string known;
    for (const auto& n : isas()) known += (known.empty() ? "" : ", ") + n;
    throw std::invalid_argument("use_isa: name must be one of " + known + ", got " + name);
  }
  chosen() = i;
}

}  // namespace fk
