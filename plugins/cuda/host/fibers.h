/* Threads of a block as fibers of one processor thread: they run until a barrier, then another runs.
 * Which one is next changes with a seed, so that a missing barrier shows. */
#ifndef TCOMPILE_FIBERS_H
#define TCOMPILE_FIBERS_H

#include <cstdint>
#include <functional>

namespace tc_host {

/* Which thread of the block runs now. */
extern uint32_t current_thread;

/* Run `body` once for each of `threads` threads (a multiple of 32), to the end.
 * Ends the process where a barrier is not reached by all. */
void run_block(uint32_t threads, const std::function<void()>& body);

/* Wait until all threads of the block, or all 32 of the warp, are here. */
void block_barrier();
void warp_barrier();

/* Number of the thread that runs next in each round depends on it. */
void set_order(uint32_t seed);

}  // namespace tc_host
#endif
