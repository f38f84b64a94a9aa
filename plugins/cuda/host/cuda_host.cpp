#include "cuda_host.h"

namespace tc_host {

dim3 block_index, grid_size, block_size;
void* dynamic_shared = nullptr;
uint64_t slots[2][1024];
uint8_t parity[1024];

}  // namespace tc_host

/* For tests: another order in which threads run. */
extern "C" __attribute__((visibility("default"))) void tc_host_order(uint32_t seed) {
  tc_host::set_order(seed);
}

/* Run a kernel of the ahead-of-time form, whose arguments are addresses and int32 alone: both are
 * passed like 64-bit integers here (x86-64 and AArch64 of Linux). */
extern "C" __attribute__((visibility("default"))) void tc_host_run(
    void* kernel, const uint32_t* grid, uint32_t block, size_t shared, const uint64_t* a,
    uint32_t count) {
  using U = uint64_t;
  using Kernel = void (*)(U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U);
  U all[18] = {0};
  if (count > 18) std::abort();
  for (uint32_t i = 0; i < count; ++i) all[i] = a[i];
  const auto run = reinterpret_cast<Kernel>(kernel);
  tc_host::launch(dim3(grid[0], grid[1], grid[2]), dim3(block), shared, [&all, run] {
    const U* v = all;
    run(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13],
        v[14], v[15], v[16], v[17]);
  });
}
