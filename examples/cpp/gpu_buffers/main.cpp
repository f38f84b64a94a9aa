// Runs an engine on what is on the GPU already, and leaves its outputs there:
//
//   gpu_buffers ARTIFACT [RUNS]
//
// Inputs are ramps here; a program has frames of cv::cuda::GpuMat, NVMM or a kernel of its own, which
// prepares them as the manifest's `preprocess` says. `data` is their address.
#include <cstdio>

#include "tcompile_runtime.hpp"

#if !defined(TCOMPILE_WITH_ENGINES)
#error "this example needs TensorRT or TensorRT-RTX: set TENSORRT_ROOT or TENSORRT_RTX_ROOT"
#endif

static void call(cudaError_t status) {
  if (status != cudaSuccess) throw tcompile::Error(cudaGetErrorString(status), "CUDA", "", 1);
}

static int run(std::vector<std::string> const& arguments) {
  if (arguments.empty() || arguments.size() > 2) throw tcompile::Error("gpu_buffers ARTIFACT [RUNS]");
  int const runs = arguments.size() > 1 ? std::atoi(arguments[1].c_str()) : 1;
  tcompile::Options options;
  options.cuda_graphs = true;  // the buffers stay where they are
  tcompile::Model const model(arguments[0], options);

  cudaStream_t stream = nullptr;
  call(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  // Freed with the process, which ends here whatever happens.
  auto const on_gpu = [](tcompile::Tensor const& tensor) {
    tcompile::Buffer made(nullptr, tensor.dtype, tensor.shape, tcompile::Memory::device);
    call(cudaMalloc(&made.data, made.size()));
    return made;
  };
  tcompile::Inputs inputs;
  std::vector<tcompile::Tensor> ramps;
  for (tcompile::TensorInfo const& info : model.inputs()) {
    tcompile::Tensor ramp("float32", model.shape_of(info.name));
    for (std::size_t i = 0; i < ramp.count(); ++i)
      ramp.data<float>()[i] = static_cast<float>(i % 255) / 127.f - 1;
    ramps.push_back(ramp.to(info.dtype));
    tcompile::Buffer const there = on_gpu(ramps.back());
    call(cudaMemcpyAsync(there.data, ramps.back().bytes.data(), there.size(),
                         cudaMemcpyHostToDevice, stream));
    inputs[info.name] = {there.data, there.dtype, there.shape, there.memory};
  }
  tcompile::Outputs outputs;
  std::map<std::string, tcompile::Tensor> shown;
  for (tcompile::TensorInfo const& info : model.outputs()) {
    shown[info.name] = tcompile::Tensor(info.dtype, model.shape_of(info.name));
    outputs[info.name] = on_gpu(shown[info.name]);
  }

  for (int i = 0; i < runs; ++i) model.run(inputs, outputs, stream);  // and does not wait
  // A kernel of the program's would work on the outputs here, on the same stream.
  for (auto& [name, tensor] : shown)
    call(cudaMemcpyAsync(tensor.bytes.data(), outputs[name].data, tensor.bytes.size(),
                         cudaMemcpyDeviceToHost, stream));
  call(cudaStreamSynchronize(stream));
  for (auto const& [name, tensor] : shown) {
    std::printf("%s %s:", name.c_str(), tcompile::shown(tensor.shape).c_str());
    for (std::size_t i = 0; i < std::min<std::size_t>(4, tensor.count()); ++i)
      std::printf(" %g", static_cast<double>(tensor.value(i)));
    std::printf("\n");
  }
  return 0;
}

int main(int count, char** arguments) {
  try {
    int const code = run({arguments + 1, arguments + count});
    if (std::ferror(stdout) || std::fflush(stdout) != 0)  // a full disk, say
      throw tcompile::Error("cannot be written", "standard output");
    return code;
  } catch (std::exception const& error) {
    auto const* const own = dynamic_cast<tcompile::Error const*>(&error);
    std::fprintf(stderr, "error: %s\n", error.what());
    return own == nullptr ? 1 : own->exit_code;
  }
}
