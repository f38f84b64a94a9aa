// TensorRT that is none, in the memory of the CPU: an engine that adds up.
//
// Its file is text, a tensor a line: `in NAME DIMS...` or `out NAME DIMS...`, all float32; a dim -1 is
// the batch, of 1 to 4. Element j of a row of an output is the sum of x_i * ((i + j) % 5 - 2) over the
// row of the first input, i counted from 0.
#pragma once

#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "cuda_runtime_api.h"

inline int getInferLibVersion() { return 100300; }

namespace nvinfer1 {

struct Dims {
  std::int32_t nbDims;
  std::int64_t d[8];
};
enum class DataType { kFLOAT, kHALF, kBF16, kFP8, kINT64, kINT32, kINT8, kUINT8, kBOOL };
enum class TensorIOMode { kNONE, kINPUT, kOUTPUT };
enum class OptProfileSelector { kMIN, kOPT, kMAX };

class ILogger {
 public:
  enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, char const* text) noexcept = 0;
};

class ICudaEngine;

/// Its memory, which one run at a time may use, and what it was told.
class IExecutionContext {
 public:
  explicit IExecutionContext(ICudaEngine const& engine) : engine_(engine) {}
  ~IExecutionContext() {
    stand_in::ensure(stand_in::device == device_, "a context ends on another GPU than its own");
  }
  bool setInputShape(char const* name, Dims const& shape);
  Dims getTensorShape(char const* name) const;
  bool setTensorAddress(char const* name, void* address) {
    if (reinterpret_cast<std::uintptr_t>(address) % 256 != 0) return false;
    stand_in::ensure(address != nullptr, "a tensor has no address");
    ++changes_;
    addresses_[name] = static_cast<float*>(address);
    return true;
  }
  bool enqueueV3(cudaStream_t stream);

 private:
  ICudaEngine const& engine_;
  int const device_ = stand_in::device;
  std::int64_t batch_ = -1;
  std::map<std::string, float*> addresses_;
  int changes_ = 0, queued_ = 0, begun_ = 0;
  bool busy_ = false;
  std::vector<float> memory_;
};

class ICudaEngine {
 public:
  struct Tensor {
    std::string name;
    bool input;
    Dims dims;
  };
  std::vector<Tensor> tensors;

  Tensor const& find(std::string const& name) const {
    for (Tensor const& each : tensors)
      if (each.name == name) return each;
    stand_in::ensure(false, "there is no such tensor");
    return tensors[0];
  }
  std::int32_t getNbIOTensors() const { return static_cast<std::int32_t>(tensors.size()); }
  char const* getIOTensorName(std::int32_t i) const { return tensors[i].name.c_str(); }
  Dims getTensorShape(char const* name) const { return find(name).dims; }
  DataType getTensorDataType(char const*) const { return DataType::kFLOAT; }
  TensorIOMode getTensorIOMode(char const* name) const {
    return find(name).input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  Dims getProfileShape(char const* name, std::int32_t, OptProfileSelector which) const {
    Dims found = find(name).dims;
    if (found.d[0] < 0) found.d[0] = which == OptProfileSelector::kMAX ? 4 : 1;
    return found;
  }
  IExecutionContext* createExecutionContext() const { return new IExecutionContext(*this); }
};

inline bool IExecutionContext::setInputShape(char const* name, Dims const& shape) {
  Dims const& own = engine_.find(name).dims;
  if (own.d[0] < 0 && (shape.d[0] < 1 || shape.d[0] > 4)) return false;
  ++changes_;
  batch_ = shape.d[0];
  return true;
}
inline Dims IExecutionContext::getTensorShape(char const* name) const {
  Dims found = engine_.find(name).dims;
  if (found.d[0] < 0) found.d[0] = batch_;
  return found;
}
inline bool IExecutionContext::enqueueV3(cudaStream_t stream) {
  std::int64_t const batch = batch_;
  auto const row = [](Dims const& dims) {
    std::int64_t count = 1;
    for (int d = 1; d < dims.nbDims; ++d) count *= dims.d[d];
    return count;
  };
  ICudaEngine::Tensor const* first = nullptr;
  for (auto const& each : engine_.tensors) {
    if (each.input && first == nullptr) first = &each;
    if (!stand_in::holds(addresses_[each.name], batch * row(each.dims) * sizeof(float))) return false;
  }
  std::int64_t const width = row(first->dims);
  float const* const from = addresses_[first->name];
  bool const captured = stand_in::of(stream).capturing;
  int const changes = changes_, number = captured ? 0 : queued_++;
  auto const begin = [=] {
    stand_in::ensure(captured || number == begun_++, "a run overtakes the one before it");
    stand_in::ensure(!captured || changes == changes_, "a graph runs after its context changed");
    stand_in::ensure(!busy_, "two runs of a context at a time");
    busy_ = true;
    memory_.assign(from, from + batch * width);
  };
  stand_in::of(stream).put(begin);
  for (auto const& each : engine_.tensors) {
    if (each.input) continue;
    float* const to = addresses_[each.name];
    std::int64_t const count = row(each.dims);
    stand_in::of(stream).put([=] {
      for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t j = 0; j < count; ++j) {
          float sum = 0;
          for (std::int64_t i = 0; i < width; ++i)
            sum += memory_[b * width + i] * static_cast<float>((i + j) % 5 - 2);
          to[b * count + j] = sum;
        }
    });
  }
  stand_in::of(stream).put([=] { busy_ = false; });
  return true;
}

class IRuntime {
 public:
  explicit IRuntime(ILogger& logger) : logger_(logger) {}
  void setEngineHostCodeAllowed(bool) {}
  IRuntime* loadRuntime(char const*) { return new IRuntime(logger_); }
  ICudaEngine* deserializeCudaEngine(void const* plan, std::size_t size) {
    std::istringstream lines({static_cast<char const*>(plan), size});
    auto engine = std::make_unique<ICudaEngine>();
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string side;
      ICudaEngine::Tensor tensor{};
      words >> side >> tensor.name;
      tensor.input = side == "in";
      if (!tensor.input && side != "out") {
        logger_.log(ILogger::Severity::kERROR, "the magic tag does not match");
        return nullptr;
      }
      while (words >> tensor.dims.d[tensor.dims.nbDims]) ++tensor.dims.nbDims;
      engine->tensors.push_back(tensor);
    }
    return engine.release();
  }

 private:
  ILogger& logger_;
};
inline IRuntime* createInferRuntime(ILogger& logger) { return new IRuntime(logger); }

class IPluginRegistry {
 public:
  void* loadLibrary(char const*) { return this; }
};

}  // namespace nvinfer1

inline nvinfer1::IPluginRegistry* getPluginRegistry() {
  static nvinfer1::IPluginRegistry registry;
  return &registry;
}
