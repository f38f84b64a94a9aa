// CUDA's runtime that is none: memory of the CPU, and streams that do their work when they are waited
// for and not before, so that what forgets to wait reads what is not there yet.
//
// It has the functions that tcompile_runtime.hpp and its test call, and no others; the same test is
// compiled against the real headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <vector>

namespace stand_in {

/// What a program does wrong ends it, as CUDA may or may not.
inline void ensure(bool condition, char const* what) {
  if (condition) return;
  std::fprintf(stderr, "misuse of CUDA or TensorRT: %s\n", what);
  std::abort();
}

using Work = std::function<void()>;

struct Stream {
  std::vector<Work> queued;
  std::size_t done = 0;
  bool capturing = false;
  std::vector<Work> captured;

  void put(Work work) { (capturing ? captured : queued).push_back(std::move(work)); }
  void reach(std::size_t count) {
    while (done < count) {
      Work const work = queued[done++];
      work();
    }
  }
  void finish() { reach(queued.size()); }
};
struct Event {
  Stream* stream = nullptr;
  std::size_t position = 0;
};
struct Graph {
  std::vector<Work> work;
};

struct Allocation {
  std::size_t size;
  int type, device;
};
inline std::map<std::uintptr_t, Allocation> allocations;
inline int live = 0, launched = 0, captured = 0, device = 0;  // live: streams, events, graphs
inline Stream legacy;

inline std::map<std::uintptr_t, Allocation>::const_iterator owner(void const* pointer) {
  auto const address = reinterpret_cast<std::uintptr_t>(pointer);
  auto found = allocations.upper_bound(address);
  if (found == allocations.begin()) return allocations.end();
  --found;
  return address < found->first + found->second.size ? found : allocations.end();
}
/// Whether all of some bytes are in one allocation.
inline bool holds(void const* pointer, std::size_t size) {
  auto const found = owner(pointer);
  return found != allocations.end() && reinterpret_cast<std::uintptr_t>(pointer) + size <=
                                           found->first + found->second.size;
}
inline Stream& of(Stream* stream);

}  // namespace stand_in

using cudaStream_t = stand_in::Stream*;
using cudaEvent_t = stand_in::Event*;
using cudaGraph_t = stand_in::Graph*;
using cudaGraphExec_t = stand_in::Graph*;
#define cudaStreamLegacy (&stand_in::legacy)

inline stand_in::Stream& stand_in::of(Stream* stream) {
  return stream == nullptr ? legacy : *stream;
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorStreamCaptureIsolation = 905,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2,
  cudaMemoryTypeManaged = 3,
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
  void* devicePointer;
  void* hostPointer;
};

inline char const* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error";
}
/// Asked for once an engine was checked: STAND_IN_SPOILS names a file that is another then.
inline cudaError_t cudaGetDeviceCount(int* count) {
  if (char const* const path = std::getenv("STAND_IN_SPOILS")) std::ofstream(path) << "another";
  return *count = 2, cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = stand_in::device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return stand_in::device = device, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  return *value = which == cudaDevAttrComputeCapabilityMajor ? 8 : 7, cudaSuccess;
}

namespace stand_in {
inline cudaError_t allocate(void** pointer, std::size_t size, int type) {
  if (size > std::size_t{1} << 30) return cudaErrorMemoryAllocation;
  *pointer = std::aligned_alloc(256, (size + 255) / 256 * 256);
  allocations[reinterpret_cast<std::uintptr_t>(*pointer)] = {size, type, device};
  return cudaSuccess;
}
}  // namespace stand_in

inline cudaError_t cudaMalloc(void** pointer, std::size_t size) {
  return stand_in::allocate(pointer, size, cudaMemoryTypeDevice);
}
inline cudaError_t cudaMallocHost(void** pointer, std::size_t size) {
  return stand_in::allocate(pointer, size, cudaMemoryTypeHost);
}
inline cudaError_t cudaFree(void* pointer) {
  stand_in::ensure(stand_in::allocations.erase(reinterpret_cast<std::uintptr_t>(pointer)) == 1,
                   "freed what was not allocated");
  std::free(pointer);
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, void const* pointer) {
  auto const own = stand_in::owner(pointer);
  *found = {cudaMemoryTypeUnregistered, -2, nullptr, const_cast<void*>(pointer)};
  if (own != stand_in::allocations.end())
    *found = {static_cast<cudaMemoryType>(own->second.type), own->second.device,
              const_cast<void*>(pointer), nullptr};
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t size,
                                   cudaMemcpyKind kind, cudaStream_t stream) {
  void const* const there = kind == cudaMemcpyHostToDevice ? to : from;
  stand_in::ensure(stand_in::holds(there, size), "copies more than the GPU's buffer holds");
  stand_in::of(stream).put([=] { std::memcpy(to, from, size); });
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  ++stand_in::live;
  return *stream = new stand_in::Stream, cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  stand_in::ensure(!stand_in::of(stream).capturing, "waits for a stream that is captured");
  stand_in::of(stream).finish();
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  stream->finish();
  --stand_in::live;
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stand_in::of(stream).capturing ? cudaStreamCaptureStatusActive
                                           : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (stand_in::of(stream).capturing) return cudaErrorStreamCaptureIsolation;
  stand_in::Event const then = *event;
  if (then.stream != nullptr && then.stream != stream)
    stand_in::of(stream).put([then] { then.stream->reach(then.position); });
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  ++stand_in::live;
  return *event = new stand_in::Event, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  stand_in::ensure(!stand_in::of(stream).capturing, "records an event in a capture");
  *event = {&stand_in::of(stream), stand_in::of(stream).queued.size()};
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream != nullptr) event->stream->reach(event->position);
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  --stand_in::live;
  delete event;
  return cudaSuccess;
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stand_in::ensure(!stream->capturing, "captures twice");
  stream->capturing = true;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->capturing = false;
  *graph = new stand_in::Graph{std::exchange(stream->captured, {})};
  ++stand_in::live, ++stand_in::captured;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph,
                                                 unsigned long long) {
  ++stand_in::live;
  return *made = new stand_in::Graph(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  --stand_in::live;
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  ++stand_in::launched;
  for (auto const& work : graph->work) stand_in::of(stream).put(work);
  return cudaSuccess;
}
