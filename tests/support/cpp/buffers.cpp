// Memory of the caller's, on a CPU and on a GPU that is none: buffers cpu|gpu ARTIFACT RUNTIME; and
// the example, which is compiled with it: buffers example ARTIFACT RUNS
//
// Each check prints a line; the exit code is the number of those that failed.
#include <cstdio>
#include <thread>

#include "tcompile_runtime.hpp"

#if defined(TCOMPILE_WITH_ENGINES)
#define main example
#include "gpu_buffers/main.cpp"
#undef main
#endif

using namespace tcompile;

static int failed = 0;

static void check(bool right, std::string const& what) {
  std::printf("%s %s\n", right ? "ok" : "WRONG", what.c_str());
  failed += !right;
}

/// A call that must end with these words.
template <class Call>
static void refused(Call const& call, std::string const& words) {
  try {
    call();
  } catch (Error const& error) {
    bool const right = std::string(error.what()).find(words) != std::string::npos;
    check(right, "refused: " + words + (right ? "" : ", but says: " + std::string(error.what())));
    return;
  }
  check(false, "not refused: " + words);
}

static Tensor image(Model const& model, std::int64_t batch, float start) {
  Tensor made("float32", model.shape_of("image", batch));
  for (std::size_t i = 0; i < made.count(); ++i)
    made.data<float>()[i] = start + static_cast<float>(i % 13) - 6;
  return made;
}

/// A tensor of an output, with bytes that no run leaves.
static Tensor empty(Model const& model, std::string const& name, std::int64_t batch) {
  Tensor made("float32", model.shape_of(name, batch));
  std::fill(made.bytes.begin(), made.bytes.end(), std::uint8_t{0xA5});
  return made;
}

/// What the copying call gives.
static Tensor copied(Model const& model, Tensor const& given) {
  Result const result = model.run({{"image", given}});
  return result["logits"];
}

static void same(Tensor const& have, Tensor const& want, std::string const& what) {
  check(have.shape == want.shape && have.bytes == want.bytes, what);
}

/// What every runtime refuses, before anything runs.
static void check_refusals(Model const& model) {
  Tensor given = image(model, 2, 0), logits = empty(model, "logits", 2);
  Tensor const untouched = logits;
  Inputs const in{{"image", given}};
  Outputs const out{{"logits", logits}};
  refused([&] { model.run({{"picture", given}}, out); }, "inputs: has 'picture'; the model takes");
  refused([&] { model.run(Inputs{}, out); }, "inputs: has no 'image'; the model takes");
  refused([&] { model.run(in, {}); }, "outputs: none is wanted; the model gives 'logits'");
  refused([&] { model.run(in, {{"probs", logits}}); }, "outputs: has 'probs'; the model gives");
  ConstBuffer wrong(given);
  wrong.dtype = "float16";
  refused([&] { model.run({{"image", wrong}}, out); },
          "input 'image' is float16 [2, 3, 8, 8], the model wants float32 ");
  wrong = ConstBuffer(given.bytes.data(), "float32", {2, 3, 8, 9});
  refused([&] { model.run({{"image", wrong}}, out); }, "float32 [2, 3, 8, 9], the model wants");
  Tensor small = empty(model, "logits", 1);
  refused([&] { model.run(in, {{"logits", small}}); },
          "output 'logits' is float32 [1, 3], the model gives float32 [2, 3]");
  wrong = ConstBuffer(nullptr, "float32", given.shape);
  refused([&] { model.run({{"image", wrong}}, out); }, "input 'image': is a null pointer");
  wrong = ConstBuffer(given.bytes.data() + 1, "float32", given.shape);
  refused([&] { model.run({{"image", wrong}}, out); }, "not a multiple of 4");
  Buffer over(given.bytes.data() + 16, "float32", logits.shape);
  refused([&] { model.run(in, {{"logits", over}}); }, "output 'logits': lies over input 'image'");
  Tensor features = empty(model, "features", 2);
  Buffer within(features.bytes.data() + 8, "float32", logits.shape);
  refused([&] { model.run(in, {{"logits", within}, {"features", features}}); },
          "output 'features': lies over output 'logits'");
  refused([&] { model.shape_of("probs"); }, "shape_of: there is no 'probs'");
  same(logits, untouched, "nothing ran");
}

/// In memory of the CPU: what the copying call gives, bit for bit.
static void check_host(Model const& model) {
  for (int round = 0; round < 3; ++round)
    for (std::int64_t batch : {2, 2, 1, 3}) {
      Tensor const given = image(model, batch, static_cast<float>(round));
      Result const want = model.run({{"image", given}});
      Tensor logits = empty(model, "logits", batch), features = empty(model, "features", batch);
      model.run({{"image", given}}, {{"logits", logits}, {"features", features}});
      same(logits, want["logits"], "logits of a batch of " + std::to_string(batch));
      same(features, want["features"], "features of a batch of " + std::to_string(batch));
      Tensor const before = logits;
      Tensor alone = empty(model, "features", batch);
      model.run({{"image", image(model, batch, 99)}}, {{"features", alone}});
      check(alone.bytes != features.bytes, "another image, another result");
      same(logits, before, "an output that is not wanted is not written");
      same(model.run({{"image", given}}).outputs[0].second, want.outputs[0].second,
           "the copying call is what it was");
      same(logits, before, "nor by the copying call");
    }
}

/// Free dims, of which one may have no name.
static void check_dims() {
  std::map<std::string, std::int64_t> sizes{{"batch", 2}};
  check(settled({-1, "batch*3"}, sizes) == 6, "a product");
  check(!settled({-1, ""}, sizes) && !settled({-1, "?"}, sizes) && !settled({-1, "n*2"}, sizes),
        "what is not known");
  TensorInfo const info{"x", "float32", {{-1, "?"}, {-1, "?"}, {-1, "batch"}, {-1, "batch*2"}}};
  check_tensor("input", Tensor("float32", {5, 7, 2, 4}), info, sizes, "m");
  refused([&] { check_tensor("input", Tensor("float32", {5, 7, 2, 6}), info, sizes, "m"); },
          "m: input 'x' is float32 [5, 7, 2, 6], the model wants float32 ['?', '?', 2, 4]");
}

static void check_threads(Model const& model) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(8, 0);
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int round = 0; round < 20; ++round) {
        Tensor const given = image(model, 1 + t % 3, static_cast<float>(t));
        Tensor logits = empty(model, "logits", 1 + t % 3);
        model.run({{"image", given}}, {{"logits", logits}});
        wrong[t] += logits.bytes != copied(model, given).bytes;
      }
    });
  for (std::thread& thread : threads) thread.join();
  check(std::count(wrong.begin(), wrong.end(), 0) == 8, "eight threads");
}

#if defined(TCOMPILE_WITH_ENGINES)
static void cuda(cudaError_t error) {
  if (error != cudaSuccess) throw Error(cudaGetErrorString(error));
}

/// A tensor on the GPU; what is written there is there at once.
struct OnGpu {
  void* data = nullptr;
  Tensor host;

  explicit OnGpu(Tensor const& tensor) : host(tensor) {
    cuda(cudaMalloc(&data, host.bytes.size()));
    copy(data, host.bytes.data(), cudaMemcpyHostToDevice);
  }
  OnGpu(OnGpu const&) = delete;
  ~OnGpu() { cudaFree(data); }
  Buffer buffer() { return {data, host.dtype, host.shape, Memory::device}; }
  ConstBuffer input() const { return {data, host.dtype, host.shape, Memory::device}; }
  Tensor const& read() {
    copy(host.bytes.data(), data, cudaMemcpyDeviceToHost);
    return host;
  }
  void copy(void* to, void const* from, cudaMemcpyKind kind) const {
    cuda(cudaMemcpyAsync(to, from, host.bytes.size(), kind, cudaStreamLegacy));
    cuda(cudaStreamSynchronize(cudaStreamLegacy));
  }
};

static void check_device(Model const& model) {
  cudaStream_t one = nullptr, other = nullptr;
  cuda(cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking));
  cuda(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  for (std::int64_t batch : {1, 2, 1}) {
    Tensor const given = image(model, batch, 1);
    Tensor const want = copied(model, given);
    OnGpu in(given), out(empty(model, "logits", batch));
    Tensor const before = out.host;
    model.run({{"image", in.input()}}, {{"logits", out.buffer()}}, one);
    same(out.read(), before, "a run on the caller's stream is not waited for");
    cuda(cudaStreamSynchronize(one));
    same(out.read(), want, "logits on the GPU, on the caller's stream");

    // Two streams and the model's own, before any is waited for; the last is done first.
    Tensor const second = image(model, batch, 50), third = image(model, batch, 70);
    Tensor const want_second = copied(model, second),
                 want_third = copied(model, third);
    Tensor logits = empty(model, "logits", batch), last = logits;
    OnGpu again(empty(model, "logits", batch));
    model.run({{"image", in.input()}}, {{"logits", again.buffer()}}, one);
    model.run({{"image", second}}, {{"logits", logits}}, other);  // in the CPU's memory
    model.run({{"image", third}}, {{"logits", last}});
    same(last, want_third, "the model's own stream, and it waits");
    cuda(cudaStreamSynchronize(other));
    same(logits, want_second, "memory of the CPU's on the caller's stream");
    cuda(cudaStreamSynchronize(one));
    same(again.read(), want, "and the run before them");

    // What the default stream is making is waited for where there is no stream.
    OnGpu late(empty(model, "image", batch)), result(empty(model, "logits", batch));
    cuda(cudaMemcpyAsync(late.data, second.bytes.data(), second.bytes.size(),
                         cudaMemcpyHostToDevice, cudaStreamLegacy));
    model.run({{"image", late.input()}}, {{"logits", result.buffer()}});
    same(result.read(), want_second, "an input that the default stream makes");
  }
  cuda(cudaStreamSynchronize(one));
  cuda(cudaStreamSynchronize(other));
  cuda(cudaStreamDestroy(one));
  cuda(cudaStreamDestroy(other));
}

static void check_device_refusals(Model const& model) {
  OnGpu in(image(model, 1, 0)), out(empty(model, "logits", 1));
  Tensor host = empty(model, "image", 1);
  Outputs const wanted{{"logits", out.buffer()}};
  ConstBuffer wrong = in.input();
  wrong.memory = Memory::host;
  refused([&] { model.run({{"image", wrong}}, wanted); },
          "input 'image': is said to be in the CPU's memory, and is in that of GPU 0");
  wrong = ConstBuffer(host.bytes.data(), "float32", host.shape, Memory::device);
  refused([&] { model.run({{"image", wrong}}, wanted); },
          "input 'image': is said to be in the memory of a GPU, and is not");
  OnGpu large(image(model, 4, 0));
  wrong = ConstBuffer(static_cast<char*>(large.data) + 4, "float32", host.shape, Memory::device);
  refused([&] { model.run({{"image", wrong}}, wanted); }, "not a multiple of 256");
  wrong = ConstBuffer(large.data, "float32", model.shape_of("image", 5), Memory::device);
  Tensor five = empty(model, "logits", 5);
  refused([&] { model.run({{"image", wrong}}, {{"logits", five}}); }, "for batches of 1 to 4");
  cuda(cudaSetDevice(1));
  {
    OnGpu elsewhere(image(model, 1, 0));
    refused([&] { model.run({{"image", elsewhere.input()}}, wanted); },
            "is in the memory of GPU 1, the engine runs on GPU 0");
  }
  int now = 0;
  cuda(cudaGetDevice(&now));
  check(now == 1, "the thread's GPU is what it was");
  cuda(cudaSetDevice(0));
  void* pinned = nullptr;
  cuda(cudaMallocHost(&pinned, in.host.bytes.size()));
  std::memcpy(pinned, in.host.bytes.data(), in.host.bytes.size());
  model.run({{"image", ConstBuffer(pinned, "float32", host.shape, Memory::device)}}, wanted);
  same(out.read(), copied(model, in.host), "pinned memory without a copy");
  cuda(cudaFreeHost(pinned));
}

#if defined(STAND_IN)
/// On another GPU than the thread's, which stays what it is; a real machine may have one alone.
static void check_second_gpu(std::string const& artifact) {
  Options options;
  options.device = 1;
  {
    Model const model(artifact, options);
    Tensor const given = image(model, 2, 4);
    same(copied(model, given), copied(Model(artifact), given), "the second GPU");
  }
  int now = -1;
  cuda(cudaGetDevice(&now));
  check(now == 0, "the thread's GPU is what it was before a model on another");
}
#endif

/// The counts are those of the stand-in; a real runtime has none.
static void check_graphs(Model const& model, bool graphs) {
  OnGpu in(image(model, 1, 3)), out(empty(model, "logits", 1)), more(empty(model, "logits", 1));
  Tensor const want = copied(model, in.host);
  cudaStream_t stream = nullptr;
  cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  auto const run = [&](OnGpu& to) {
    cuda(cudaMemcpyAsync(to.data, in.data, 12, cudaMemcpyHostToDevice, stream));
    model.run({{"image", in.input()}}, {{"logits", to.buffer()}}, stream);
    cuda(cudaStreamSynchronize(stream));
    same(to.read(), want, "logits where they are wanted");
  };
#if defined(STAND_IN)
  int const launched = stand_in::launched, captured = stand_in::captured;
#endif
  run(out), run(out), run(out);                 // captured with the second, launched twice
  run(more), run(out), run(more), run(more);    // once more with the last
#if defined(STAND_IN)
  check(stand_in::captured - captured == (graphs ? 2 : 0), "captured what comes twice in a row");
  check(stand_in::launched - launched == (graphs ? 3 : 0), "and launched");
#endif
  // The caller's own capture holds the run.
  cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  model.run({{"image", in.input()}}, {{"logits", more.buffer()}}, stream);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cuda(cudaStreamEndCapture(stream, &graph));
  cuda(cudaGraphInstantiateWithFlags(&exec, graph, 0));
  cuda(cudaGraphDestroy(graph));
  Tensor const changed = image(model, 1, 8);
  in.copy(in.data, changed.bytes.data(), cudaMemcpyHostToDevice);
  cuda(cudaGraphLaunch(exec, stream));
  cuda(cudaStreamSynchronize(stream));
  same(more.read(), copied(model, changed), "a graph of the caller's");
  cuda(cudaGraphExecDestroy(exec));
  cuda(cudaStreamDestroy(stream));
  (void)graphs;
}

static void check_gpu(std::string const& artifact) {
  for (bool graphs : {false, true}) {
    Options options;
    options.cuda_graphs = graphs;
    Model const model(artifact, options);
    check_refusals(model);
    check_host(model);
    check_device(model);
    check_device_refusals(model);
    check_graphs(model, graphs);
    check_threads(model);
  }
#if defined(STAND_IN)
  check_second_gpu(artifact);
  check(stand_in::live == 0 && stand_in::allocations.empty(), "nothing is left on the GPU");
#endif
}
#endif

static void check_cpu(std::string const& artifact, std::string const& runtime) {
  Options options;
  options.runtime = runtime;
  Model const model(artifact, options);
  check_dims();
  check_refusals(model);
  check_host(model);
  check_threads(model);
  Tensor given = image(model, 1, 0), logits = empty(model, "logits", 1);
  ConstBuffer there(given.bytes.data(), "float32", given.shape, Memory::device);
  refused([&] { model.run({{"image", there}}, {{"logits", logits}}); },
          "input 'image': is in the memory of a GPU, and O");
  refused([&] { model.run({{"image", given}}, {{"logits", logits}}, &failed); },
          "stream: O");
}

int main(int count, char** arguments) {
  try {
    std::string const where = count > 1 ? arguments[1] : "";
#if defined(TCOMPILE_WITH_ENGINES)
    if (where == "example") return example(count - 1, arguments + 1);
    if (where == "gpu") check_gpu(arguments[2]);
#endif
    if (where == "cpu") check_cpu(arguments[2], arguments[3]);
  } catch (std::exception const& error) {
    std::printf("WRONG %s\n", error.what());
    return 100;
  }
  return failed;
}
