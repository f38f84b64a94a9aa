/* CUDA's runtime of a machine without a GPU: host memory. As much as check.py calls. */
#include <stdlib.h>
#include <string.h>
int cudaMalloc(void** p, size_t n) { *p = malloc(n); return *p ? 0 : 2; }
int cudaFree(void* p) { free(p); return 0; }
int cudaMemcpy(void* to, void const* from, size_t n, int kind) {
  if (kind != 1 && kind != 2) return 1;
  memcpy(to, from, n);
  return 0;
}
int cudaDeviceSynchronize(void) { return 0; }
