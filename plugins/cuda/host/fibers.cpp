#include "fibers.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace tc_host {

uint32_t current_thread = 0;

namespace {

constexpr size_t kStack = 128 * 1024; /* sanitizers make frames large */
constexpr uint32_t kWarp = 32;

enum class State : uint8_t { ready, at_warp, at_block, done };

#if defined(__x86_64__)
using Context = void*; /* its stack pointer */
#else
using Context = ucontext_t;
#endif

struct Fiber {
  Context context{};
  State state = State::ready;
};

std::vector<char*> stacks;
std::vector<Fiber> fibers;
std::vector<uint32_t> warp_waiting;
uint32_t block_waiting = 0, alive = 0, random_state = 0;
Context scheduler{};
const std::function<void()>* body = nullptr;

#if defined(__x86_64__)
extern "C" void tc_host_switch(void** save, void* load);
asm(R"(
.text
.globl tc_host_switch
.hidden tc_host_switch
.type tc_host_switch, @function
tc_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tc_host_switch, .-tc_host_switch
)");
#endif

void to_fiber(Fiber& fiber) {
#if defined(__x86_64__)
  tc_host_switch(&scheduler, fiber.context);
#else
  swapcontext(&scheduler, &fiber.context);
#endif
}

void to_scheduler() {
  Fiber& fiber = fibers[current_thread];
#if defined(__x86_64__)
  tc_host_switch(&fiber.context, scheduler);
#else
  swapcontext(&fiber.context, &scheduler);
#endif
}

void entry() {
  (*body)();
  fibers[current_thread].state = State::done;
  --alive;
  to_scheduler();
  std::abort(); /* nobody switches to a fiber that is done */
}

void start(uint32_t i) {
  Fiber& fiber = fibers[i];
  fiber.state = State::ready;
#if defined(__x86_64__)
  /* What tc_host_switch pops: six registers, then where to return to; then the stack is as behind a
   * call, 8 bytes off a multiple of 16. */
  void** top = reinterpret_cast<void**>(stacks[i] + kStack) - 1;
  *--top = reinterpret_cast<void*>(&entry);
  for (int r = 0; r < 6; ++r) *--top = nullptr;
  fiber.context = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks[i];
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

uint32_t next_random() {
  random_state = random_state * 1664525u + 1013904223u;
  return random_state >> 8;
}

}  // namespace

void set_order(uint32_t seed) { random_state = seed; }

void run_block(uint32_t threads, const std::function<void()>& given) {
  if (threads == 0 || threads % kWarp != 0) {
    std::fprintf(stderr, "tc_host: %u threads are no whole warps\n", threads);
    std::abort();
  }
  while (stacks.size() < threads) {
    void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks.push_back(static_cast<char*>(memory));
  }
  body = &given;
  fibers.resize(threads);
  warp_waiting.assign(threads / kWarp, 0);
  block_waiting = 0;
  alive = threads;
  for (uint32_t i = 0; i < threads; ++i) start(i);
  while (alive > 0) {
    /* One round over all threads, begun anywhere, in either direction. */
    const uint32_t first = next_random() % threads, down = next_random() & 1;
    bool ran = false;
    for (uint32_t n = 0; n < threads; ++n) {
      const uint32_t i = (down ? first + threads - n : first + n) % threads;
      if (fibers[i].state != State::ready) continue;
      current_thread = i;
      ran = true;
      to_fiber(fibers[i]);
    }
    if (!ran && alive > 0) {
      std::fprintf(stderr, "tc_host: %u threads wait at a barrier that others do not reach\n", alive);
      std::abort();
    }
  }
}

void block_barrier() {
  if (++block_waiting < fibers.size()) {
    fibers[current_thread].state = State::at_block;
    to_scheduler();
    return;
  }
  block_waiting = 0;
  for (Fiber& fiber : fibers)
    if (fiber.state == State::at_block) fiber.state = State::ready;
}

void warp_barrier() {
  const uint32_t warp = current_thread / kWarp;
  if (++warp_waiting[warp] < kWarp) {
    fibers[current_thread].state = State::at_warp;
    to_scheduler();
    return;
  }
  warp_waiting[warp] = 0;
  for (uint32_t i = warp * kWarp; i < (warp + 1) * kWarp; ++i)
    if (fibers[i].state == State::at_warp) fibers[i].state = State::ready;
}

}  // namespace tc_host
