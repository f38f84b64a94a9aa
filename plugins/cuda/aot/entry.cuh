/* Kernels for TensorRT's ahead-of-time plugins: one an op, no workspace, arguments in the order
 * (inputs, int32 numbers, outputs), indices int64. Grid and numbers are those of
 * plugins/aot_kernels.py. Rows that are not aligned for wide accesses take narrow ones. */
#ifndef TCOMPILE_AOT_ENTRY_CUH
#define TCOMPILE_AOT_ENTRY_CUH

#include "../device.cuh"

namespace tc {

__device__ __forceinline__ bool fits(const void* pointer, int bytes, int width) {
  return bytes % width == 0 && reinterpret_cast<uintptr_t>(pointer) % width == 0;
}
__device__ __forceinline__ Index index64(const void* data) { return {data, 1}; }
__device__ __forceinline__ IndexOut index64_out(void* data) { return {data, 1}; }

}  // namespace tc

#define TC_EACH_TYPE(entry) \
  entry(f32, float) entry(f16, __half) entry(bf16, __nv_bfloat16)
#endif
