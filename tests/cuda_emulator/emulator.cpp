// The scheduler: a fiber per thread, resumed in a chosen order, each until it meets others or ends.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <random>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Bounds of the section that __shared__ puts its variables in; absent where no kernel has any.
extern "C" unsigned char __start_fk_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_fk_shared[] __attribute__((weak, visibility("hidden")));

namespace emulator {
namespace {

constexpr size_t kStack = 64 << 10, kShared = 48 << 10, kMaxShared = 227 << 10;  // unasked, and asked for
constexpr unsigned char kCanary = 0xff;                                          // a NaN in every floating type

enum class State { ready, at_warp, at_block, ended };

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  void* stack = malloc(kStack);
  ucontext_t first;
  jmp_buf at;
  bool started = false;
  State state;
  unsigned mask;
  int kind;
  uint64_t brought;
  Lanes found;
  std::vector<std::vector<Copy>> copies = {{}};  // on their way; the last group is still open
};

enum Order { forward, reverse, shuffled };
Order order = forward;
unsigned seed = 0;
long launches = 0;

std::vector<Fiber*> fibers;  // kept from launch to launch
Fiber* running = nullptr;
jmp_buf scheduler;
void (*body)(void*);
void* argument;
std::vector<unsigned char> shared;
std::map<const void*, size_t> allowed;  // dynamic shared memory of kernels that asked for more
char message[512] = "";
bool failed = false;
std::mutex one_launch;

int index_of_running() { return int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)); }

void to_scheduler() {
  if (!_setjmp(running->at)) _longjmp(scheduler, 1);
}

void run_fiber() {
  for (;;) {
    body(argument);
    for (const auto& group : running->copies)
      if (!group.empty()) fail("thread %d ends with copies on their way", index_of_running());
    running->copies.resize(1);
    running->state = State::ended;
    to_scheduler();
  }
}

void resume(int t) {
  running = fibers[t];
  const unsigned x = blockDim.x, y = blockDim.y;
  threadIdx = {unsigned(t) % x, unsigned(t) / x % y, unsigned(t) / (x * y)};
  if (_setjmp(scheduler)) return;
  if (running->started) _longjmp(running->at, 1);
  running->started = true;
  getcontext(&running->first);
  running->first.uc_stack.ss_sp = running->stack;
  running->first.uc_stack.ss_size = kStack;
  running->first.uc_link = nullptr;
  makecontext(&running->first, run_fiber, 0);
  setcontext(&running->first);
}

// Lanes of the warp of thread t that wait for each other, if nobody is missing: they go on.
void release_warp(int t, int threads) {
  const int first = t / 32 * 32;
  const Fiber& one = *fibers[t];
  for (int l = 0; l < 32; ++l) {
    if (!(one.mask >> l & 1)) continue;
    if (first + l >= threads) fail("a warp's mask %08x names lane %d, which the block does not have", one.mask, l);
    const Fiber& other = *fibers[first + l];
    if (other.state == State::ended) fail("a warp's mask %08x names lane %d, which has ended", one.mask, l);
    if (other.state != State::at_warp || other.mask != one.mask) return;
    if (other.kind != one.kind) fail("lanes of one warp meet in different functions");
  }
  Lanes all;
  for (int l = 0; l < 32; ++l) all.value[l] = one.mask >> l & 1 ? fibers[first + l]->brought : 0;
  for (int l = 0; l < 32; ++l) {
    if (!(one.mask >> l & 1)) continue;
    fibers[first + l]->found = all;
    fibers[first + l]->state = State::ready;
  }
}

void run_block(int threads, std::mt19937& random) {
  if (__start_fk_shared) memset(__start_fk_shared, kCanary, size_t(__stop_fk_shared - __start_fk_shared));
  std::fill(shared.begin(), shared.end(), kCanary);
  std::vector<int> turns(threads);
  for (int t = 0; t < threads; ++t) {
    turns[t] = order == reverse ? threads - 1 - t : t;
    fibers[t]->state = State::ready;
  }
  for (int ended = 0; ended < threads;) {
    bool moved = false;
    const auto pass = [&](int begin, int end) {  // over some of the turns; false where none was ready
      bool any = false;
      for (int i = begin; i < end && !failed; ++i) {
        const int t = turns[i];
        if (fibers[t]->state != State::ready) continue;
        any = moved = true;
        resume(t);
        ended += fibers[t]->state == State::ended;
      }
      return any && !failed;
    };
    if (order == shuffled) {  // warp after warp, each as far as it comes without the others
      std::vector<int> warps((threads + 31) / 32);
      for (size_t w = 0; w < warps.size(); ++w) warps[w] = int(w);
      std::shuffle(warps.begin(), warps.end(), random);
      for (int t = 0; t < threads; ++t) turns[t] = t;
      for (int w : warps) {
        const int begin = 32 * w, end = begin + 32 < threads ? begin + 32 : threads;
        std::shuffle(turns.begin() + begin, turns.begin() + end, random);
        while (pass(begin, end)) {}
      }
    } else {
      pass(0, threads);
    }
    if (failed) return;
    if (moved) continue;
    int waiting = 0;
    for (int t = 0; t < threads; ++t) waiting += fibers[t]->state == State::at_block;
    if (waiting < threads) {
      failed = true;
      snprintf(message, sizeof message,
               "deadlock: of %d threads %d wait at __syncthreads, %d have ended, %d wait in a warp", threads, waiting,
               ended, threads - waiting - ended);
      return;
    }
    for (int t = 0; t < threads; ++t) fibers[t]->state = State::ready;
  }
}

}  // namespace

const char* last_error() { return message; }
int lane() { return index_of_running() % 32; }
unsigned char* dynamic_shared() { return shared.data(); }

void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  failed = true;
  _longjmp(scheduler, 1);
}

const Lanes& meet(unsigned mask, int kind, uint64_t value) {
  if (!(mask >> lane() & 1)) fail("lane %d meets others under the mask %08x, without itself", lane(), mask);
  Fiber* const self = running;
  self->state = State::at_warp;
  self->mask = mask;
  self->kind = kind;
  self->brought = value;
  release_warp(index_of_running(), int(blockDim.x * blockDim.y * blockDim.z));
  to_scheduler();
  return self->found;
}

void meet_block() {
  running->state = State::at_block;
  to_scheduler();
}

void copy_async(void* to, const void* from, size_t bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("an asynchronous copy of %zu bytes", bytes);
  if (uintptr_t(to) % bytes || uintptr_t(from) % bytes) fail("a misaligned asynchronous copy");
  if (order == reverse)
    memcpy(to, from, bytes);
  else
    running->copies.back().push_back({to, from, bytes});
}
void commit_copies() { running->copies.emplace_back(); }
void wait_for_copies(size_t but_for) {
  auto& groups = running->copies;
  while (groups.size() - 1 > but_for) {
    for (const Copy& c : groups.front()) memcpy(c.to, c.from, c.bytes);
    groups.erase(groups.begin());
  }
}

cudaError_t allow_shared(const void* kernel, int bytes) {
  const std::lock_guard<std::mutex> lock(one_launch);
  if (bytes < 0 || size_t(bytes) > kMaxShared) {
    snprintf(message, sizeof message, "%d bytes of dynamic shared memory", bytes);
    return cudaErrorInvalidValue;
  }
  allowed[kernel] = size_t(bytes);
  return cudaSuccess;
}

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*of_thread)(void*), void* args) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const unsigned threads = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  const size_t most = allowed.count(kernel) ? std::max(allowed[kernel], kShared) : kShared;
  if (threads < 1 || threads > 1024 || config.dynamicSmemBytes > most || config.gridDim.x < 1) {
    snprintf(message, sizeof message, "a launch of %u threads a block, %zu bytes shared, %u blocks", threads,
             config.dynamicSmemBytes, config.gridDim.x);
    return cudaErrorInvalidConfiguration;
  }
  ++launches;
  body = of_thread;
  argument = args;
  failed = false;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  shared = std::vector<unsigned char>(config.dynamicSmemBytes);  // of this size: a sanitizer sees its end
  while (fibers.size() < threads) fibers.push_back(new Fiber);
  std::mt19937 random(seed);
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) {
        // Blocks may come in any order as well.
        blockIdx = {order == reverse ? gridDim.x - 1 - x : x, y, z};
        run_block(int(threads), random);
        if (failed) {
          for (Fiber* f : fibers) f->started = false, f->copies = {{}};
          return cudaErrorLaunchFailure;
        }
      }
  return cudaSuccess;
}

Elsewhere elsewhere = nullptr;
Machine machine;
bool exact_instructions = false;

}  // namespace emulator

// ---- for the tests ----

#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT void fk_emulator_order(int order, unsigned seed) {
  emulator::order = emulator::Order(order);
  emulator::seed = seed;
}
EXPORT void fk_emulator_exact(bool exact) { emulator::exact_instructions = exact; }
EXPORT void fk_emulator_elsewhere(emulator::Elsewhere run) { emulator::elsewhere = run; }
EXPORT void fk_emulator_machine(int error, int of_kernels, int driver) {
  emulator::machine = {cudaError_t(error), cudaError_t(of_kernels), driver};
}
EXPORT long fk_emulator_launches() { return emulator::launches; }

// -fsanitize=alignment calls this; libubsan is not linked.
struct Mismatch {
  const char* file;
  uint32_t line, column;
};
EXPORT void __ubsan_handle_type_mismatch_v1(Mismatch* where, uintptr_t p) {
  emulator::fail("%s:%u: misaligned access at address %#lx", where->file, where->line, (unsigned long)p);
}
