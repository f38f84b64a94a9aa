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
