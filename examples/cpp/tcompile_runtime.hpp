// Runs what `tcompile build` wrote in a C++17 program: as `tcompile.load` does in Python.
//
//   tcompile::Model model("vit-cpu");
//   tcompile::Result result = model({image});      // decoded, 8-bit RGB
//   for (tcompile::TopClass const& best : result.top(0, 5)) ...  // of the first image
//   model.run(inputs, outputs, stream);  // in memory of the caller's, on a GPU too: `Buffer`
//
// Everything that can be known of an artifact without its runtime is checked before that is given
// anything of it. What is wrong is a `tcompile::Error`: what, where, and what to do.
//
// One file; it needs nlohmann's json.hpp and the runtimes that it is told of:
// TCOMPILE_WITH_OPENVINO, TCOMPILE_WITH_ONNXRUNTIME, and TCOMPILE_WITH_TENSORRT or
// TCOMPILE_WITH_TENSORRT_RTX. CMake's find_package(tcompile_runtime) defines what it finds.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#if defined(TCOMPILE_WITH_OPENVINO)
#include <openvino/openvino.hpp>
#endif
#if defined(TCOMPILE_WITH_ONNXRUNTIME)
#include <onnxruntime_c_api.h>
#endif
#if defined(TCOMPILE_WITH_TENSORRT) && defined(TCOMPILE_WITH_TENSORRT_RTX)
#error "TensorRT and TensorRT-RTX have the same symbols: one of them in a program"
#elif defined(TCOMPILE_WITH_TENSORRT) || defined(TCOMPILE_WITH_TENSORRT_RTX)
#define TCOMPILE_WITH_ENGINES
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#endif

namespace tcompile {

namespace fs = std::filesystem;
using json = nlohmann::json;

// ---- Errors ------------------------------------------------------------------------------------

/// What went wrong, where, and what to do; `what()` is all of it on one line.
class Error : public std::runtime_error {
 public:
  std::string fault, where, hint;
  /// For main: 2 where the person can put it right, 1 where a runtime failed.
  int exit_code;

  explicit Error(std::string fault_, std::string where_ = "", std::string hint_ = "",
                 int exit_code_ = 2)
      : std::runtime_error((where_.empty() ? "" : where_ + ": ") + fault_ +
                           (hint_.empty() ? "" : " (" + hint_ + ")")),
        fault(std::move(fault_)),
        where(std::move(where_)),
        hint(std::move(hint_)),
        exit_code(exit_code_) {}
};

inline constexpr char const* again = "copy the whole artifact again, or build it anew";
inline constexpr char const* on_cpu =
    "runtime=\"onnxruntime\" or \"openvino\" runs its model.onnx on the CPU";

// ---- Tensors -----------------------------------------------------------------------------------

/// A dimension: a number, or the name of one that is free.
struct Dim {
  std::int64_t size = -1;
  std::string name;
  bool free() const { return size < 0; }
};

/// An input or output: name, dtype as numpy calls it, shape.
struct TensorInfo {
  std::string name, dtype;
  std::vector<Dim> shape;
};

template <class Items, class Show>
std::string joined(Items const& items, Show show) {
  std::string text;
  for (auto const& item : items) text += (text.empty() ? "" : ", ") + show(item);
  return text;
}
inline std::string shown(std::vector<Dim> const& shape) {
  return "[" +
         joined(
             shape,
             [](Dim const& d) { return d.free() ? "'" + d.name + "'" : std::to_string(d.size); }) +
         "]";
}
inline std::string shown(std::vector<std::int64_t> const& shape) {
  return "[" + joined(shape, [](std::int64_t d) { return std::to_string(d); }) + "]";
}
inline std::string shown(std::vector<TensorInfo> const& tensors) {
  return tensors.empty() ? "none" : joined(tensors, [](TensorInfo const& t) {
    return "'" + t.name + "' " + shown(t.shape);
  });
}

inline std::size_t item_size(std::string const& dtype) {
  static std::map<std::string, std::size_t> const sizes{
      {"float32", 4}, {"float16", 2}, {"bfloat16", 2},     {"float64", 8},
      {"int64", 8},   {"int32", 4},   {"int16", 2},        {"int8", 1},
      {"uint8", 1},   {"bool", 1},    {"float8_e4m3fn", 1}};
  auto const found = sizes.find(dtype);
  if (found == sizes.end()) throw Error("there is no tensor of '" + dtype + "' here");
  return found->second;
}

inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float half_to_float(std::uint16_t half) {
  std::uint32_t const sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u,
                      fraction = half & 0x3FFu;
  if (exponent == 31) return bits_to_float(sign | 0x7F800000u | fraction << 13);
  if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  float const small = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -small : small;
}
/// Rounded to the nearest, to the even one of two.
inline std::uint16_t float_to_half(float value) {
  std::uint32_t const bits = float_to_bits(value), size = bits & 0x7FFFFFFFu;
  auto const sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  if (size > 0x7F800000u) return sign | 0x7E00u;
  if (size >= 0x477FF000u) return sign | 0x7C00u;
  if (size < 0x38800000u)  // what has no leading 1 there: multiples of 2^-24
    return sign | static_cast<std::uint16_t>(std::nearbyint(bits_to_float(size) * 0x1p24f));
  return sign | static_cast<std::uint16_t>((size + 0xFFFu + (size >> 13 & 1u) - 0x38000000u) >> 13);
}
inline std::uint16_t float_to_bfloat(float value) {
  std::uint32_t const bits = float_to_bits(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

/// An array, row after row.
struct Tensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> bytes;

  Tensor() = default;
  Tensor(std::string dtype_, std::vector<std::int64_t> shape_)
      : dtype(std::move(dtype_)), shape(std::move(shape_)), bytes(count() * item_size(dtype)) {}

  std::size_t count() const {
    std::size_t total = 1;
    for (std::int64_t d : shape) total *= static_cast<std::size_t>(d);
    return total;
  }
  template <class T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <class T>
  T const* data() const {
    return reinterpret_cast<T const*>(bytes.data());
  }

  /// Its values as floats, whatever number they are.
  std::vector<float> floats() const {
    std::vector<float> out(count());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = value(i);
    return out;
  }
  float value(std::size_t i) const {
    if (dtype == "float32") return data<float>()[i];
    if (dtype == "float16") return half_to_float(data<std::uint16_t>()[i]);
    if (dtype == "bfloat16")
      return bits_to_float(static_cast<std::uint32_t>(data<std::uint16_t>()[i]) << 16);
    if (dtype == "float64") return static_cast<float>(data<double>()[i]);
    if (dtype == "int64") return static_cast<float>(data<std::int64_t>()[i]);
    if (dtype == "int32") return static_cast<float>(data<std::int32_t>()[i]);
    if (dtype == "int8") return static_cast<float>(data<std::int8_t>()[i]);
    if (dtype == "uint8" || dtype == "bool") return static_cast<float>(bytes[i]);
    throw Error("values of " + dtype + " are not read here");
  }

  /// A float32 tensor in another dtype; images are float32 before a model's input says otherwise.
  Tensor to(std::string const& wanted) const {
    if (dtype == wanted) return *this;
    Tensor out(wanted, shape);
    float const* in = data<float>();
    for (std::size_t i = 0; i < count(); ++i) {
      if (wanted == "float16")
        out.data<std::uint16_t>()[i] = float_to_half(in[i]);
      else if (wanted == "bfloat16")
        out.data<std::uint16_t>()[i] = float_to_bfloat(in[i]);
      else if (wanted == "float64")
        out.data<double>()[i] = in[i];
      else if (wanted == "uint8")
        out.bytes[i] = std::isnan(in[i]) ? std::uint8_t{0}
                                         : static_cast<std::uint8_t>(
                                               std::nearbyint(std::clamp(in[i], 0.f, 255.f)));
      else
        throw Error("images do not become " + wanted);
    }
    return out;
  }
};
using Tensors = std::vector<std::pair<std::string, Tensor>>;

// ---- Memory of the caller's ----------------------------------------------------------------------

/// Where a buffer lies. `device` is what the engine's GPU reads and writes: cudaMalloc's memory,
/// managed memory, and pinned memory, which a Jetson's GPU shares with its CPU.
enum class Memory { host, device };

/// A tensor in memory of the caller's, row after row without gaps: it is neither owned nor copied.
template <class Pointer>
struct BasicBuffer {
  Pointer data = nullptr;
  std::string dtype;  ///< as numpy calls it: float32, float16, bfloat16, int64, …
  std::vector<std::int64_t> shape;
  Memory memory = Memory::host;

  BasicBuffer() = default;
  BasicBuffer(Pointer data_, std::string dtype_, std::vector<std::int64_t> shape_,
              Memory memory_ = Memory::host)
      : data(data_), dtype(std::move(dtype_)), shape(std::move(shape_)), memory(memory_) {}
  /// That of a tensor, which must outlive it.
  BasicBuffer(std::conditional_t<std::is_same_v<Pointer, void*>, Tensor&, Tensor const&> tensor)
      : data(tensor.bytes.data()), dtype(tensor.dtype), shape(tensor.shape) {}

  /// How many bytes it has. Throws Error for a dtype that is not known.
  std::size_t size() const {
    std::size_t total = item_size(dtype);
    for (std::int64_t d : shape) total *= static_cast<std::size_t>(d);
    return total;
  }
};
using Buffer = BasicBuffer<void*>;
using ConstBuffer = BasicBuffer<void const*>;
using Inputs = std::map<std::string, ConstBuffer>;
using Outputs = std::map<std::string, Buffer>;
/// A cudaStream_t.
using Stream = void*;

/// A dim such as 3, `batch` or `batch*3`, with what is known of the free ones in it put in; nothing
/// where one is not known.
inline std::optional<std::int64_t> settled(Dim const& dim,
                                           std::map<std::string, std::int64_t> const& sizes) {
  if (!dim.free()) return dim.size;
  if (dim.name.empty()) return std::nullopt;
  std::int64_t product = 1;
  std::istringstream stream(dim.name);
  for (std::string factor; std::getline(stream, factor, '*');) {
    auto const known = sizes.find(factor);
    if (known != sizes.end())
      product *= known->second;
    else if (!factor.empty() && factor.find_first_not_of("0123456789") == std::string::npos)
      product *= std::atoll(factor.c_str());
    else
      return std::nullopt;
  }
  return product;
}

/// What a buffer is called in messages.
inline std::string named(char const* kind, std::string const& name) {
  return std::string(kind) + " '" + name + "'";
}

/// Throw Error unless a tensor is what the model takes or gives: the dtype, and the shape once the
/// free dims that are known are put in. A free dim that is met first becomes known.
template <class Given>
void check_tensor(char const* kind, Given const& given, TensorInfo const& wanted,
                  std::map<std::string, std::int64_t>& sizes, std::string const& where) {
  bool same = given.dtype == wanted.dtype && given.shape.size() == wanted.shape.size();
  for (std::size_t i = 0; same && i < wanted.shape.size(); ++i) {
    Dim const& dim = wanted.shape[i];
    if (dim.free() && dim.name != "?") sizes.emplace(dim.name, given.shape[i]);
    same = given.shape[i] >= 0 && settled(dim, sizes).value_or(given.shape[i]) == given.shape[i];
  }
  if (same) return;
  std::vector<Dim> want = wanted.shape;
  for (Dim& dim : want) dim.size = settled(dim, sizes).value_or(-1);
  throw Error(named(kind, wanted.name) + " is " + given.dtype + " " + shown(given.shape) +
                  ", the model " + (std::string(kind) == "input" ? "wants " : "gives ") +
                  wanted.dtype + " " +
                  shown(given.shape.size() == want.size() ? want : wanted.shape),
              where);
}

/// Throw Error unless a buffer is memory that can hold what it says.
template <class Pointer>
void check_memory(char const* kind, std::string const& name, BasicBuffer<Pointer> const& buffer) {
  std::size_t const item = item_size(buffer.dtype);
  if (buffer.data == nullptr && buffer.size() > 0)
    throw Error("is a null pointer", named(kind, name));
  if (reinterpret_cast<std::uintptr_t>(buffer.data) % item != 0)
    throw Error("lies at an address that is not a multiple of " + std::to_string(item),
                named(kind, name));
}

/// Throw Error where an output would be written over an input or another output.
inline void check_apart(Inputs const& inputs, Outputs const& outputs) {
  auto const meet = [](auto const& a, auto const& b) {
    auto const x = reinterpret_cast<std::uintptr_t>(a.data),
               y = reinterpret_cast<std::uintptr_t>(b.data);
    return x < y + b.size() && y < x + a.size();
  };
  for (auto out = outputs.begin(); out != outputs.end(); ++out) {
    for (auto const& [name, input] : inputs)
      if (meet(out->second, input))
        throw Error("lies over " + named("input", name), named("output", out->first),
                    "give each its own memory");
    for (auto other = std::next(out); other != outputs.end(); ++other)
      if (meet(out->second, other->second))
        throw Error("lies over " + named("output", other->first), named("output", out->first),
                    "give each its own memory");
  }
}

// ---- SHA-256 (FIPS 180-4) ----------------------------------------------------------------------

class Sha256 {
 public:
  void add(std::uint8_t const* data, std::size_t size) {
    total_ += size;
    for (std::size_t i = 0; i < size; ++i) {
      block_[filled_++] = data[i];
      if (filled_ == 64) mix();
    }
  }
  std::string hex() {
    std::uint64_t const bits = total_ * 8;
    std::uint8_t const one = 0x80, zero = 0;
    add(&one, 1);
    while (filled_ != 56) add(&zero, 1);
    for (int i = 7; i >= 0; --i) block_[filled_++] = static_cast<std::uint8_t>(bits >> 8 * i);
    mix();
    std::string text;
    for (std::uint32_t word : state_)
      for (int i = 28; i >= 0; i -= 4) text += "0123456789abcdef"[word >> i & 15u];
    return text;
  }

 private:
  static constexpr std::array<std::uint32_t, 64> constants_{
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
      0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
      0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
      0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
      0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
      0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
      0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
      0xc67178f2};

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> block_{};
  std::size_t filled_ = 0;
  std::uint64_t total_ = 0;

  static std::uint32_t turned(std::uint32_t x, int by) { return x >> by | x << (32 - by); }
  void mix() {
    std::array<std::uint32_t, 64> w{};
    for (int i = 0; i < 16; ++i)
      w[i] = static_cast<std::uint32_t>(block_[4 * i]) << 24 | block_[4 * i + 1] << 16 |
             block_[4 * i + 2] << 8 | block_[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      std::uint32_t const a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[i - 7] +
             (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; ++i) {
      std::uint32_t const one = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) +
                                ((e & f) ^ (~e & g)) + constants_[i] + w[i];
      std::uint32_t const two =
          (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    std::array<std::uint32_t, 8> const end{a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state_[i] += end[i];
    filled_ = 0;
  }
};

inline std::string sha256_of_bytes(std::string const& bytes) {
  Sha256 digest;
  digest.add(reinterpret_cast<std::uint8_t const*>(bytes.data()), bytes.size());
  return digest.hex();
}

/// A file's SHA-256, in hexadecimal.
inline std::string sha256(fs::path const& path) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> chunk(1 << 20);
  Sha256 digest;
  while (stream) {
    stream.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    digest.add(reinterpret_cast<std::uint8_t*>(chunk.data()),
               static_cast<std::size_t>(stream.gcount()));
  }
  if (!stream.eof()) throw Error("cannot be read", path.string());
  return digest.hex();
}

// ---- Numbers and words of a manifest -----------------------------------------------------------

/// A count. Throws std::invalid_argument; json's own conversion cuts off what follows the point, and
/// wraps around.
inline std::int64_t counted(json const& number) {
  std::int64_t const value = number.is_number_integer() ? number.get<std::int64_t>() : -1;
  if (value < 0) throw std::invalid_argument(number.dump() + " is not a count");
  return value;
}

inline std::string text_or(json const& object, char const* key, char const* otherwise) {
  return object.contains(key) && !object[key].is_null() ? object[key].get<std::string>()
                                                        : otherwise;
}

// ---- Images ------------------------------------------------------------------------------------

/// Decoded pixels, upright: red, green, blue, 8 bits each, row after row.
struct Image {
  int width = 0, height = 0;
  std::vector<std::uint8_t> pixels;

  Image() = default;
  Image(int width_, int height_)
      : width(width_), height(height_), pixels(std::size_t{3} * width_ * height_) {}
  std::uint8_t* row(int y) { return pixels.data() + std::size_t{3} * width * y; }
  std::uint8_t const* row(int y) const { return pixels.data() + std::size_t{3} * width * y; }
};

/// Resizing as pillow does it, to the pixel: a filter as wide as the reduction, in fixed point,
/// rounded to 8 bits between columns and rows.
namespace resizing {

struct Filter {
  double support;
  double (*at)(double);
};

constexpr double pi = 3.14159265358979323846;

inline double sinc(double x) { return x == 0 ? 1 : std::sin(pi * x) / (pi * x); }

/// By the name in the manifest; nothing for nearest, which has no filter.
inline std::optional<Filter> filter(std::string const& name) {
  if (name == "nearest") return std::nullopt;
  if (name == "box") return Filter{.5, [](double x) { return x > -.5 && x <= .5 ? 1. : 0.; }};
  if (name == "bilinear") return Filter{1, [](double x) { return std::max(0., 1 - std::abs(x)); }};
  if (name == "hamming")
    return Filter{1, [](double x) {
                    return std::abs(x) >= 1 ? 0 : sinc(x) * (.54 + .46 * std::cos(pi * x));
                  }};
  if (name == "lanczos")
    return Filter{3, [](double x) { return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0; }};
  return Filter{2, [](double x) {  // bicubic, Keys' with a = -1/2
                  x = std::abs(x);
                  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
                  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -.5 : 0;
                }};
}

/// The pixels that one new pixel is made of, and their shares in units of 2^-22.
struct Window {
  int first;
  std::vector<int> shares;
};
constexpr int bits = 22;

inline std::vector<Window> windows(int before, int after, Filter const& filter) {
  double const scale = static_cast<double>(before) / after, wide = std::max(scale, 1.);
  double const support = filter.support * wide, inverse = 1 / wide;
  std::vector<Window> found;
  for (int i = 0; i < after; ++i) {
    double const middle = (i + .5) * scale;
    int const first = std::max(0, static_cast<int>(middle - support + .5));
    int const end = std::min(before, static_cast<int>(middle + support + .5));
    std::vector<double> shares;
    double sum = 0;
    for (int x = first; x < end; ++x) {
      shares.push_back(filter.at((x - middle + .5) * inverse));
      sum += shares.back();
    }
    Window window{first, {}};
    for (double share : shares) {
      double const whole = (sum != 0 ? share / sum : share) * (1 << bits);
      window.shares.push_back(static_cast<int>(whole < 0 ? whole - .5 : whole + .5));
    }
    found.push_back(std::move(window));
  }
  return found;
}

inline std::uint8_t clipped(int sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> bits, 0, 255));
}

inline Image columns(Image const& image, int width, Filter const& filter) {
  Image out(width, image.height);
  std::vector<Window> const all = windows(image.width, width, filter);
  for (int y = 0; y < image.height; ++y) {
    std::uint8_t* to = out.row(y);
    for (Window const& window : all) {
      int sum[3] = {1 << (bits - 1), 1 << (bits - 1), 1 << (bits - 1)};
      std::uint8_t const* from = image.row(y) + 3 * window.first;
      for (int share : window.shares)
        for (int& colour : sum) colour += *from++ * share;
      for (int colour : sum) *to++ = clipped(colour);
    }
  }
  return out;
}

inline Image rows(Image const& image, int height, Filter const& filter) {
  Image out(image.width, height);
  std::vector<Window> const all = windows(image.height, height, filter);
  std::vector<int> sums(std::size_t{3} * image.width);
  for (int y = 0; y < height; ++y) {
    std::fill(sums.begin(), sums.end(), 1 << (bits - 1));
    for (std::size_t i = 0; i < all[y].shares.size(); ++i) {
      std::uint8_t const* from = image.row(all[y].first + static_cast<int>(i));
      for (int& sum : sums) sum += *from++ * all[y].shares[i];
    }
    std::transform(sums.begin(), sums.end(), out.row(y), clipped);
  }
  return out;
}

/// Middles of the new pixels in the old ones, added up as pillow does.
inline std::vector<int> nearest(int before, int after) {
  double const scale = static_cast<double>(before) / after;
  std::vector<int> found;
  for (double at = scale * .5; static_cast<int>(found.size()) < after; at += scale)
    found.push_back(std::min(before - 1, static_cast<int>(at)));
  return found;
}

}  // namespace resizing

inline Image resized(Image const& image, int width, int height, std::string const& interpolation) {
  auto const filter = resizing::filter(interpolation);
  if (filter) {
    // Rows first where they lose more than twice as many as columns: pillow since 13, which earlier
    // took columns first always. The difference is one step of 255 here and there.
    bool const rows_first =
        height < image.height && image.height - height > 2 * (image.width - width);
    Image out = image;
    if (rows_first) out = resizing::rows(out, height, *filter);
    if (width != out.width) out = resizing::columns(out, width, *filter);
    return height == out.height ? out : resizing::rows(out, height, *filter);
  }
  Image out(width, height);
  std::vector<int> const xs = resizing::nearest(image.width, width);
  std::vector<int> const ys = resizing::nearest(image.height, height);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      std::copy_n(image.row(ys[y]) + 3 * xs[x], 3, out.row(y) + 3 * x);
  return out;
}

/// A part of an image; what lies outside of it is black.
inline Image cut(Image const& image, int left, int top, int width, int height) {
  Image out(width, height);
  int const begin = std::max(0, -left), end = std::min(width, image.width - left);
  for (int y = std::max(0, -top); y < std::min(height, image.height - top) && begin < end; ++y)
    std::copy(image.row(y + top) + 3 * (begin + left), image.row(y + top) + 3 * (end + left),
              out.row(y) + 3 * begin);
  return out;
}

/// How images are prepared for a model, as its manifest records it.
class Preprocessing {
 public:
  /// Throws Error where the record says too little, or its numbers cannot be used.
  Preprocessing(json const& record, std::string const& where) {
    try {
      json const& size = record.at("size");
      height_ = number(size.at(0), most_pixels), width_ = number(size.at(1), most_pixels);
      mean_ = colours(record.at("mean"));
      std_ = colours(record.at("std"));
      if (record.contains("crop_pct") && !record["crop_pct"].is_null())
        crop_ = record["crop_pct"].get<double>();
      if (crop_ == 0) crop_ = 1;
      interpolation_ = text_or(record, "interpolation", "bicubic");
      resize_ = text_or(record, "resize", "crop");
      layout_ = text_or(record, "layout", "image");
      last_ = text_or(record, "channels", "") == "last";
      if (layout_ == "patches") {
        patch_ = number(record.at("patch_size"), most_patch);
        merge_ = number(record.at("merge_size"), most_patch);
        time_ = number(record.at("temporal_patch_size"), most_patch);
        if (record.value("frames", double(time_)) != time_) layout_ = "a video";
      }
    } catch (json::exception const&) {
      throw Error("the model does not say how images are prepared for it", where, build_again);
    }
    float const least = *std::min_element(std_.begin(), std_.end());
    bool const positive = width_ > 0 && height_ > 0 && least > 0 && crop_ > 0;
    double const area = width_ * 1. * height_;
    if (!positive || !std::isfinite(crop_) || area / (crop_ * crop_) > most_pixels ||
        area * time_ > 4. * most_pixels)
      throw Error("says how images are prepared, but its numbers cannot be used", where,
                  build_again);
    if (layout_ != "image" && layout_ != "patches")
      throw Error("the model takes " + layout_ + ", not one image", where, "give it as a tensor");
    // No overflow: neither is above 4096.
    if (layout_ == "patches" && (std::min({patch_, merge_, time_}) < 1 ||
                                 height_ % (patch_ * merge_) || width_ % (patch_ * merge_)))
      throw Error("the model records images that its patches do not fill", where, build_again);
  }

  /// One image as the model wants it: float32 [1, 3, H, W], [1, H, W, 3] or packed patches [N, C].
  Tensor operator()(Image const& image) const {
    if (image.width < 1 || image.height < 1 ||
        image.pixels.size() != std::size_t{3} * image.width * image.height)
      throw Error("an image must have width × height × 3 bytes, red, green, blue", "images");
    Image const sized = resize_ == "squash" ? resized(image, width_, height_, interpolation_)
                        : resize_ == "pad"  ? padded(image)
                                            : middle(image);
    std::vector<float> normal(sized.pixels.size());
    for (std::size_t i = 0; i < normal.size(); ++i)
      normal[i] = (static_cast<float>(sized.pixels[i]) / 255.f - mean_[i % 3]) / std_[i % 3];
    if (layout_ == "patches") return packed(normal);
    Tensor out("float32", last_ ? std::vector<std::int64_t>{1, height_, width_, 3}
                                : std::vector<std::int64_t>{1, 3, height_, width_});
    std::size_t const area = std::size_t(height_) * width_;
    for (std::size_t i = 0; i < normal.size(); ++i)
      out.data<float>()[last_ ? i : i % 3 * area + i / 3] = normal[i];
    return out;
  }

 private:
  static constexpr int most_pixels = 1 << 26, most_patch = 4096;
  static constexpr char const* build_again = "build it with --preprocess, or give it tensors";
  int width_ = 0, height_ = 0, patch_ = 1, merge_ = 1, time_ = 1;
  std::array<float, 3> mean_{}, std_{};
  double crop_ = 1;
  std::string interpolation_, resize_, layout_;
  bool last_ = false;

  /// A number, as Python's int() takes it; what is out of bounds is 0, which is refused.
  static int number(json const& given, int most) {
    double const value = given.get<double>();
    return value >= 1 && value <= most ? static_cast<int>(value) : 0;
  }
  static std::array<float, 3> colours(json const& given) {
    if (given.is_array() && given.size() == 3) return given.get<std::array<float, 3>>();
    auto const one = (given.is_array() ? given.at(0) : given).get<float>();
    return {one, one, one};
  }

  /// The whole image, and black around it. Halves go to the even number, as in Python.
  Image padded(Image const& image) const {
    double const scale = std::min(static_cast<double>(height_) / image.height,
                                  static_cast<double>(width_) / image.width);
    int const w = std::max(1, static_cast<int>(std::nearbyint(image.width * scale)));
    int const h = std::max(1, static_cast<int>(std::nearbyint(image.height * scale)));
    return cut(resized(image, w, h, interpolation_), -((width_ - w) / 2), -((height_ - h) / 2),
               width_, height_);
  }

  /// The shorter side to floor(size / crop), and the middle of it, as torchvision does.
  Image middle(Image const& image) const {
    double const high = std::floor(height_ / crop_ + 1e-6),
                 wide = std::floor(width_ / crop_ + 1e-6);
    double w = wide, h = high;
    if (image.height / high < image.width / wide)
      w = std::max<double>(width_, std::floor(high * image.width / image.height));
    else
      h = std::max<double>(height_, std::floor(wide * image.height / image.width));
    if (w * h > 4. * most_pixels)
      throw Error("is " + std::to_string(image.width) + " × " + std::to_string(image.height) +
                      " pixels, too narrow to be cut to " + std::to_string(width_) + " × " +
                      std::to_string(height_),
                  "the image given");
    return cut(resized(image, static_cast<int>(w), static_cast<int>(h), interpolation_),
               static_cast<int>(std::nearbyint((w - width_) / 2)),
               static_cast<int>(std::nearbyint((h - height_) / 2)), width_, height_);
  }

  /// As Qwen-VL's processors pack patches: those that become one token lie together, and a still
  /// image stands in for each frame. [rows, columns, merge, merge, colour, time, patch, patch].
  Tensor packed(std::vector<float> const& normal) const {
    int const side = patch_ * merge_, down = height_ / side, across = width_ / side;
    Tensor out("float32", {std::int64_t(down) * across * merge_ * merge_,
                           std::int64_t(3) * time_ * patch_ * patch_});
    float* to = out.data<float>();
    for (int i = 0; i < down * across * merge_ * merge_; ++i) {
      int const square = i / (merge_ * merge_), inside = i % (merge_ * merge_);
      int const top = square / across * side + inside / merge_ * patch_;
      int const left = square % across * side + inside % merge_ * patch_;
      for (int colour = 0; colour < 3; ++colour)
        for (int frame = 0; frame < time_; ++frame)
          for (int y = top; y < top + patch_; ++y)
            for (int x = left; x < left + patch_; ++x)
              *to++ = normal[(std::size_t(y) * width_ + x) * 3 + colour];
    }
    return out;
  }
};

// ---- The artifact ------------------------------------------------------------------------------

struct FileEntry {
  std::uint64_t bytes;
  std::string sha256;
};

/// What an engine was made compatible with.
struct Compatibility {
  bool version = false;       ///< newer versions of TensorRT run it
  bool lean_runtime = false;  ///< it holds what they run it by: host code
  bool plugins = false;       ///< it holds the plugin library: host code
  std::vector<std::string> capabilities;  ///< none: the target's

  bool host_code() const { return lean_runtime || plugins; }
};

/// What a program needs of `manifest.json`; `document` is all of it.
struct Artifact {
  fs::path directory;
  json document;
  std::string target, runtime, capability, precision, fault;  // "" where there is none
  bool plugins = false;                                       // token ops are plugins
  Compatibility compatibility;
  std::vector<TensorInfo> inputs, outputs;
  std::map<std::string, std::string> token_index;
  std::vector<std::string> labels;
  std::map<std::string, std::string> versions;  // package → what built it
  std::map<std::string, FileEntry> files;
};

/// Read the manifest. Throws Error where it is missing, damaged or of another version.
inline Artifact read_artifact(fs::path const& directory) {
  constexpr char const* schema = "tcompile.manifest/1";
  fs::path const path = directory / "manifest.json";
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored))
    throw Error(std::string(fs::exists(directory, ignored) ? "not a tcompile artifact"
                                                           : "no such directory") +
                    ", there is no manifest.json",
                directory.string(), "tcompile build makes one");
  Artifact found;
  found.directory = directory;
  json& document = found.document;
  auto const tensors = [](json const& list) {
    std::vector<TensorInfo> all;
    for (json const& each : list) {
      TensorInfo info{each.at("name"), each.at("dtype"), {}};
      for (json const& dim : each.at("shape"))
        info.shape.push_back(dim.is_string() ? Dim{-1, dim.get<std::string>()}
                                             : Dim{counted(dim), ""});
      all.push_back(std::move(info));
    }
    return all;
  };
  try {
    std::ifstream stream(path, std::ios::binary);
    document = json::parse(stream);
    if (!document.is_object() || document.value("schema", "") != schema)
      throw std::invalid_argument(std::string("not a ") + schema + " document");
    json const& target = document.at("target");
    found.target = target.at("name"), found.runtime = target.at("runtime");
    if (found.runtime == "jetson") found.runtime = "tensorrt";
    found.capability = text_or(target, "compute_capability", "");
    found.precision = document.at("precision");
    found.versions = document.at("versions").get<std::map<std::string, std::string>>();
    found.fault = text_or(document, "fault", "");
    found.inputs = tensors(document.at("inputs")), found.outputs = tensors(document.at("outputs"));
    // What older manifests do not have.
    if (document.contains("token_ops") && !document["token_ops"].is_null())
      found.plugins = document["token_ops"].value("form", "") == "plugin";
    if (document.contains("compatibility") && !document["compatibility"].is_null()) {
      json const& told = document["compatibility"];
      Compatibility& known = found.compatibility;
      known.version = told.at("version"), known.lean_runtime = told.at("lean_runtime");
      known.plugins = told.at("plugins");
      known.capabilities = told.at("capabilities").get<std::vector<std::string>>();
    }
    found.token_index = document.value("token_index", found.token_index);
    found.labels = document.value("labels", found.labels);
    for (json const& file : document.at("files")) {
      fs::path const name = file.at("path").get<std::string>();
      if (name.is_absolute() || std::find(name.begin(), name.end(), "..") != name.end())
        throw std::invalid_argument("files: path '" + name.string() + "' leaves the artifact");
      found.files[name.generic_string()] = {static_cast<std::uint64_t>(counted(file.at("bytes"))),
                                            file.at("sha256")};
    }
  } catch (std::exception const& error) {
    bool const known = document.is_object() && document.contains("tool");
    throw Error(std::string("damaged manifest: ") + error.what(), path.string(),
                known ? "written by " + document["tool"].dump() : "");
  }
  return found;
}

/// Whether a file of a Jetson's bundle is an engine that its own script made there, and whole.
/// `read`: what was read of it; null: it is read here.
inline bool made_on_device(Artifact const& artifact, std::string const& name,
                           FileEntry const* read = nullptr) {
  fs::path const digest = artifact.directory / (name + ".sha256");
  if (artifact.document["target"]["runtime"] != "jetson" || name.rfind("engine/", 0) != 0)
    return false;
  std::ifstream stream(digest);
  std::string written;
  std::error_code failed;  // a digest that cannot be read is not one that is not there
  if (!(stream >> written))
    return !fs::exists(digest, failed) && !failed && !artifact.files.count(name);
  return written == (read ? read->sha256 : sha256(artifact.directory / name));
}

/// Throws Error unless a file is there, and as it was written or as the device made it.
/// `read`: what was read of it; null: it is read here.
inline void check_file(Artifact const& artifact, std::string const& name,
                       FileEntry const* read = nullptr) {
  fs::path const path = artifact.directory / name;
  std::error_code failed;
  if (!fs::is_regular_file(path, failed)) throw Error("is missing", path.string(), again);
  if (made_on_device(artifact, name, read)) return;
  auto const entry = artifact.files.find(name);
  if (entry == artifact.files.end())
    throw Error(artifact.document["target"]["runtime"] == "jetson"
                    ? "is not what the script of this bundle made"
                    : "is not in the manifest",
                path.string(), again);
  std::uint64_t const size = read ? read->bytes : fs::file_size(path, failed);
  if (failed) throw Error("cannot be read: " + failed.message(), path.string());
  if (size < entry->second.bytes)
    throw Error("is truncated: " + std::to_string(size) + " of " +
                    std::to_string(entry->second.bytes) + " bytes",
                path.string(), again);
  if (size > entry->second.bytes || (read ? read->sha256 : sha256(path)) != entry->second.sha256)
    throw Error("is not as it was written: its sha256 is not that in the manifest", path.string(),
                again);
}

/// Throws Error for an engine that holds code which would run here, where no SHA-256 of it is known;
/// `check_file` has compared it where one is.
inline void check_host_code(Artifact const& artifact, std::string const& name,
                            FileEntry const& read) {
  if (!artifact.compatibility.host_code() || artifact.files.count(name)) return;
  fs::path const path = artifact.directory / name, digest = path.string() + ".sha256";
  std::ifstream stream(digest);
  std::string written;
  if (!(stream >> written) || written != read.sha256)
    throw Error("holds code that would run in this process, and there is no sha256 of it",
                path.string(),
                "`sh build_engine.sh` builds it and writes " + digest.filename().string());
}

/// An engine, read once and checked as it was read: a file may be another by the time that TensorRT
/// opens it. Throws Error.
inline std::string read_engine(Artifact const& artifact, std::string const& name) {
  fs::path const path = artifact.directory / name;
  std::error_code ignored;
  std::string plan;
  if (fs::is_regular_file(path, ignored)) {
    std::ifstream stream(path, std::ios::binary);
    plan.assign(std::istreambuf_iterator<char>(stream), {});
    if (!stream) throw Error("cannot be read", path.string());
  }
  FileEntry const read{plan.size(), sha256_of_bytes(plan)};
  check_file(artifact, name, &read);
  check_host_code(artifact, name, read);
  return plan;
}

/// Throws Error where a model has other inputs or outputs than the manifest says.
inline void check_contract(char const* kind, std::vector<TensorInfo> found,
                           std::vector<TensorInfo> told, std::string const& where) {
  auto const by_name = [](TensorInfo const& a, TensorInfo const& b) { return a.name < b.name; };
  std::sort(found.begin(), found.end(), by_name), std::sort(told.begin(), told.end(), by_name);
  auto const same_dim = [](Dim const& a, Dim const& b) {
    return a.free() ? b.free() : a.size == b.size;
  };
  bool const same = std::equal(
      found.begin(), found.end(), told.begin(), told.end(), [&](auto const& a, auto const& b) {
        return a.name == b.name &&
               std::equal(a.shape.begin(), a.shape.end(), b.shape.begin(), b.shape.end(), same_dim);
      });
  if (!same)
    throw Error(
        std::string("its ") + kind + " are " + shown(found) + ", the manifest says " + shown(told),
        where, again);
}

inline std::vector<std::string> parts(std::string const& version) {
  std::vector<std::string> found;
  std::istringstream stream(version);
  for (std::string part; std::getline(stream, part, '.');) found.push_back(part);
  return found;
}

/// Major versions of a version-compatible engine and of what runs it, where they differ; a test holds
/// them against targets/devices/_tensorrt.json.
inline constexpr std::pair<int, int> across_major_versions[] = {{8, 10}, {10, 11}};

/// Whether a version of TensorRT runs an engine that another one built, to the third number: the
/// same, or a newer one where the engine is version-compatible.
inline bool runs_in(std::string const& built, std::string const& installed, bool compatible) {
  std::vector<std::string> want = parts(built), have = parts(installed);
  want.resize(std::min({want.size(), have.size(), std::size_t{3}})), have.resize(want.size());
  if (!compatible) return want == have;
  auto const numbers = [](std::vector<std::string> const& texts) {
    std::vector<int> all;
    for (std::string const& text : texts) all.push_back(std::atoi(text.c_str()));
    return all;
  };
  std::vector<int> const old = numbers(want), now = numbers(have);
  if (old.empty() || old[0] == now[0]) return old <= now;
  return std::any_of(std::begin(across_major_versions), std::end(across_major_versions),
                     [&](auto const& pair) { return pair == std::make_pair(old[0], now[0]); });
}

/// Throws Error unless a version of TensorRT runs an engine. Returns the lean runtime that it needs;
/// an empty path: none, or it holds its own.
inline fs::path check_version(Artifact const& artifact, fs::path const& path,
                              std::string const& title, std::string const& package,
                              std::string const& installed) {
  // As it is named: the engine may be a link.
  std::string const name = path.lexically_relative(artifact.directory).generic_string();
  Compatibility const& compatibility = artifact.compatibility;
  std::string built;
  auto const version = artifact.versions.find(package);
  if (artifact.files.count(name) && version != artifact.versions.end()) built = version->second;
  if (built.empty() && name.find(".trt") != std::string::npos) {  // as the device's script names it
    built = name.substr(name.rfind(".trt") + 4);
    built = built.substr(0, built.find(".engine"));
  }
  if (built.empty())
    throw Error("does not say which " + title + " built the engine", path.string(),
                std::string("build it again; ") + on_cpu);
  std::string const by = "the engine was built by " + title + " " + built;
  if (!runs_in(built, installed, compatibility.version)) {
    std::string rule;
    if (compatibility.version) {
      std::string const major = parts(built)[0];
      rule = " and runs in " + major + ".x from " + built + " on";
      for (auto const& pair : across_major_versions)
        if (std::to_string(pair.first) == major) rule += " and " + std::to_string(pair.second);
    }
    throw Error(by + rule + ", installed is " + installed, path.string(),
                "install that, or build it again with " + installed + "; " + on_cpu);
  }
  if (!compatibility.version || compatibility.lean_runtime || runs_in(built, installed, false))
    return {};
  char const* const named = std::getenv("TCOMPILE_LEAN_RUNTIME");
  std::error_code ignored;
  if (named == nullptr || !fs::is_regular_file(named, ignored))
    throw Error(by + " without its lean runtime, installed is " + installed, path.string(),
                "TCOMPILE_LEAN_RUNTIME names libnvinfer_lean.so of " + built + "; " + on_cpu);
  return named;
}

/// Throws Error for a GPU of another compute capability than the artifact is for.
inline void check_capability(Artifact const& artifact, std::string const& capability) {
  std::vector<std::string> known = artifact.compatibility.capabilities;
  if (known.empty() && !artifact.capability.empty()) known = {artifact.capability};
  if (!known.empty() && std::find(known.begin(), known.end(), capability) == known.end())
    throw Error("is for compute capability " +
                    joined(known, [](std::string const& each) { return each; }) + " (" +
                    artifact.target + "), this GPU has " + capability,
                artifact.directory.string(), std::string("build it for this GPU; ") + on_cpu);
}

/// SHA-256 of plugins/cuda/tcompile_spec.h; a test holds it against that.
inline constexpr char const* plugin_specification =
    "2652eebb7aa88d5f588a9880dfbef25c66993007bccafa109770fd8517e40738";

/// Machine code runs on the same major version from its minor on; PTX on everything newer.
inline bool has_code(std::string const& listed, std::string const& capability) {
  int const wanted =
      std::atoi(parts(capability)[0].c_str()) * 10 + std::atoi(parts(capability)[1].c_str());
  std::istringstream stream(listed);
  for (std::string entry; std::getline(stream, entry, ',');) {
    if (entry.empty() || !std::isdigit(static_cast<unsigned char>(entry[0]))) return true;
    char* end = nullptr;
    long const built = std::strtol(entry.c_str(), &end, 10);  // of too many digits the largest
    bool const exact = *end == 'a' || *end == 'f';
    bool const real = entry.find("-real") != std::string::npos;
    if (exact ? built == wanted : built <= wanted && (!real || built / 10 == wanted / 10))
      return true;
  }
  return false;
}

/// Throws Error unless a library holds the token ops for this machine, TensorRT and GPU. It is
/// read, and nothing in it is run: what does not fit may crash the process that loads it.
inline void check_plugins(fs::path const& library, std::string const& tensorrt,
                          std::string const& capability) {
  constexpr char const* make =
      "`tcompile plugins build` makes one, `tcompile plugins check` says all";
  std::error_code ignored;
  if (!fs::is_regular_file(library, ignored))
    throw Error("there is no plugin library at " + library.string(), "",
                "`tcompile plugins build` makes one; TCOMPILE_PLUGINS names another");
  auto const wrong = [&](std::string const& problem) {
    return Error(
        "the token ops of this engine are plugins, and their library does not fit: " + problem,
        library.string(), make);
  };
  std::ifstream stream(library, std::ios::binary);
  std::string const data{std::istreambuf_iterator<char>(stream), {}};
  if (data.size() < 64 || data.compare(0, 4,
                                       "\x7f"
                                       "ELF") != 0)
    throw wrong("it is not an ELF file");
#if defined(__x86_64__) || defined(__aarch64__)
#if defined(__x86_64__)
  constexpr unsigned char machine = 62;
#else
  constexpr unsigned char machine = 183;
#endif
  if (static_cast<unsigned char>(data[18]) != machine)
    throw wrong("it is for another machine: build it there");
#endif
  // key=value, separated by spaces (plugins/trt/entry.cpp).
  std::map<std::string, std::string> facts;
  std::size_t at = data.find("package=");
  while (at != std::string::npos &&
         data.substr(at, 400).find(" specification=") == std::string::npos)
    at = data.find("package=", at + 1);
  if (at == std::string::npos) throw wrong("it is not a plugin library of tcompile");
  std::istringstream words(data.substr(at, data.find('\0', at) - at));
  for (std::string word; words >> word;)
    facts[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
  if (facts["plugin"] != "1" || facts["api"] != "1" ||
      facts["specification"] != plugin_specification)
    throw wrong("it was built from another specification of the ops: build it anew");
  if (parts(facts["tensorrt"] + ".")[0] != parts(tensorrt)[0])
    throw wrong("it was built for TensorRT " + facts["tensorrt"] + ", not " + tensorrt);
  if (!has_code(facts["architectures"], capability))
    throw wrong("it has no code for GPU architecture " + capability + ", only " +
                facts["architectures"]);
}

// ---- Results -----------------------------------------------------------------------------------

/// A class, the model's raw output for it, and its softmax share; `label` is empty where the model
/// has no name for it.
struct TopClass {
  std::size_t index;
  std::string label;
  float logit;
  double probability;
};

/// The tokens that the rows of an output are.
struct Tokens {
  Tensor const* index;            ///< [B, K], positions among the dense model's tokens; -1: fused
  Tensor const* owner = nullptr;  ///< [B, N], the row that stands for each of them; -1: none
  Tensor const* size = nullptr;   ///< [B, K], how many tokens a row stands for
};

/// Every output by name, one row a sample.
class Result {
 public:
  Tensors outputs;

  Result(Tensors outputs_, std::vector<std::string> labels,
         std::map<std::string, std::string> token_index)
      : outputs(std::move(outputs_)),
        labels_(std::move(labels)),
        token_index_(std::move(token_index)) {}

  Tensor const* find(std::string const& name) const {
    for (auto const& [key, tensor] : outputs)
      if (key == name) return &tensor;
    return nullptr;
  }
  /// Of a result that is kept: `model(images)[name]` would refer to what is gone.
  Tensor const& operator[](std::string const& name) && = delete;
  Tensor const& operator[](std::string const& name) const& {
    if (Tensor const* found = find(name)) return *found;
    throw Error("no output '" + name + "', there are " +
                joined(outputs, [](auto const& each) { return each.first; }));
  }

  /// Which tokens of the dense model the rows of an output are; nothing where it has them all.
  std::optional<Tokens> tokens(std::string const& output) && = delete;
  std::optional<Tokens> tokens(std::string const& output) const& {
    (void)(*this)[output];
    auto const named = token_index_.find(output);
    Tensor const* index = named == token_index_.end() ? nullptr : find(named->second);
    if (index == nullptr) return std::nullopt;
    std::string const suffix = named->second.substr(std::strlen("token_index"));
    return Tokens{index, find("token_owner" + suffix), find("token_size" + suffix)};
  }

  /// The best classes of a sample, best first, of an output [B, classes]: by default the first that
  /// holds classes, by shape and name. Classes that are NaN or Inf have no rank.
  std::vector<TopClass> top(std::size_t sample, std::size_t count = 5,
                            std::string output = "") const {
    if (output.empty()) output = classes();
    if (output.empty()) throw Error("no output holds classes");
    Tensor const* logits = find(output);
    if (logits == nullptr || logits->shape.size() != 2 || sample >= rows(*logits))
      throw Error("holds no classes [B, classes] of sample " + std::to_string(sample),
                  "output '" + output + "'");
    auto const width = static_cast<std::size_t>(logits->shape[1]);
    std::vector<float> row;
    for (std::size_t i = 0; i < width; ++i) row.push_back(logits->value(sample * width + i));
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < width; ++i)
      if (std::isfinite(row[i])) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t x, std::size_t y) { return row[x] > row[y]; });
    double sum = 0;
    for (std::size_t i : order) sum += std::exp(double{row[i]} - row[order[0]]);
    std::vector<TopClass> best;
    for (std::size_t i : order) {
      if (best.size() == count) break;
      best.push_back({i, labels_.size() == width ? labels_[i] : "", row[i],
                      std::exp(double{row[i]} - row[order[0]]) / sum});
    }
    return best;
  }

  /// The first output that holds classes; empty where none does.
  std::string classes() const {
    for (auto const& [name, tensor] : outputs) {
      std::string lower;
      for (unsigned char c : name) lower += static_cast<char>(std::tolower(c));
      bool other = tensor.shape.size() != 2 || tensor.dtype.find("float") == std::string::npos;
      for (char const* word : {"pool", "embed", "feature", "hidden", "token"})
        other = other || lower.find(word) != std::string::npos;
      if (!other) return name;
    }
    return "";
  }

 private:
  std::vector<std::string> labels_;
  std::map<std::string, std::string> token_index_;

  static std::size_t rows(Tensor const& tensor) {
    return static_cast<std::size_t>(tensor.shape[0]);
  }
};

// ---- Runtimes ----------------------------------------------------------------------------------

struct Options {
  std::string runtime;        ///< one of `runtimes()`; "": that of the artifact's target
  int threads = 0;            ///< of a CPU's operators; 0: the runtime decides
  int device = 0;             ///< the GPU that an engine runs on, as CUDA counts them
  bool cuda_graphs = false;   ///< launch an engine as one CUDA graph
  bool allow_failed = false;  ///< load also a build that failed and was kept
};

/// A model that is open in a runtime. Several threads may call `run`.
class Backend {
 public:
  std::vector<TensorInfo> inputs, outputs;
  /// The smallest and largest batch of an engine; nothing: fixed, or any.
  std::optional<std::pair<std::int64_t, std::int64_t>> batches;

  virtual ~Backend() = default;
  /// Every output, of one run; inputs have been checked.
  virtual Tensors run(std::map<std::string, Tensor> const& feed) = 0;
  /// One run in memory of the caller's: from its inputs to those outputs that it wants. What can be
  /// known without the runtime has been checked.
  virtual void run(Inputs const& given, Outputs const& wanted, Stream stream) = 0;

 protected:
  /// Throw Error for what only a GPU has.
  static void check_on_cpu(char const* title, Inputs const& given, Outputs const& wanted,
                           Stream stream) {
    constexpr char const* hint = "copy it to the CPU's; or build for a GPU: its engine takes both";
    auto const check = [&](char const* kind, auto const& buffers) {
      for (auto const& [name, buffer] : buffers)
        if (buffer.memory == Memory::device)
          throw Error(std::string("is in the memory of a GPU, and ") + title + " runs on the CPU",
                      named(kind, name), hint);
    };
    check("input", given), check("output", wanted);
    if (stream != nullptr)
      throw Error(std::string(title) + " runs on the CPU, which has no streams", "stream",
                  "give none");
  }
};

/// What this program was built with.
inline std::vector<std::string> runtimes() {
  return {
#if defined(TCOMPILE_WITH_ONNXRUNTIME)
      "onnxruntime",
#endif
#if defined(TCOMPILE_WITH_OPENVINO)
      "openvino",
#endif
#if defined(TCOMPILE_WITH_TENSORRT)
      "tensorrt",
#endif
#if defined(TCOMPILE_WITH_TENSORRT_RTX)
      "tensorrt-rtx",
#endif
  };
}

template <class Kind, std::size_t N>
std::string dtype_of(std::array<std::pair<Kind, char const*>, N> const& known, Kind kind,
                     std::string const& name) {
  for (auto const& [each, dtype] : known)
    if (each == kind) return dtype;
  throw Error("tensor '" + name + "' is of a type that is not read here");
}

#if defined(TCOMPILE_WITH_OPENVINO)
class OpenVino : public Backend {
 public:
  OpenVino(Artifact const& artifact, fs::path const& path, Options const& options) try {
    bool const bf16 = artifact.runtime == "openvino" && artifact.precision == "bf16";
    ov::AnyMap settings{ov::hint::inference_precision(bf16 ? ov::element::bf16 : ov::element::f32),
                        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY)};
    if (options.threads > 0) settings.insert(ov::inference_num_threads(options.threads));
    model_ = core_.compile_model(path.string(), "CPU", settings);
    request_ = model_.create_infer_request();
    inputs = described(model_.inputs(), artifact.inputs, in_);
    outputs = described(model_.outputs(), artifact.outputs, out_);
  } catch (ov::Exception const& error) {  // of core_, too
    throw Error("OpenVINO does not accept the model: " + reason(error.what()), path.string());
  }

  Tensors run(std::map<std::string, Tensor> const& feed) override {
    std::lock_guard<std::mutex> const turn(turn_);
    try {
      for (std::size_t i = 0; i < inputs.size(); ++i)
        request_.set_tensor(in_[i], view(in_[i], ConstBuffer(feed.at(inputs[i].name))));
      request_.infer();
      Tensors found;
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        ov::Tensor const out = request_.get_tensor(out_[i]);
        ov::Shape const shape = out.get_shape();
        Tensor copy(outputs[i].dtype, {shape.begin(), shape.end()});
        std::memcpy(copy.bytes.data(), out.data(), copy.bytes.size());
        found.emplace_back(outputs[i].name, std::move(copy));
      }
      return found;
    } catch (ov::Exception const& error) {
      throw Error("OpenVINO cannot run the model: " + reason(error.what()), "openvino", "", 1);
    }
  }

  void run(Inputs const& given, Outputs const& wanted, Stream stream) override {
    check_on_cpu("OpenVINO", given, wanted, stream);
    std::set<std::string> names;
    for (auto const& each : wanted) names.insert(each.first);
    std::lock_guard<std::mutex> const turn(turn_);
    try {
      // A request keeps what it was given. So this is not that of the other `run`, and an output
      // that is not wanted any more takes a new one.
      if (!lent_ || names != lent_outputs_)
        lent_ = model_.create_infer_request(), lent_outputs_ = names;
      for (std::size_t i = 0; i < inputs.size(); ++i)
        lent_.set_tensor(in_[i], view(in_[i], given.at(inputs[i].name)));
      for (std::size_t i = 0; i < outputs.size(); ++i)
        if (names.count(outputs[i].name))
          lent_.set_tensor(out_[i], view(out_[i], wanted.at(outputs[i].name)));
      lent_.infer();
    } catch (ov::Exception const& error) {
      lent_ = {};
      throw Error("OpenVINO cannot run the model: " + reason(error.what()), "openvino", "", 1);
    }
  }

 private:
  using Port = ov::Output<ov::Node const>;
  using Ports = std::vector<Port>;
  ov::Core core_;
  ov::CompiledModel model_;
  ov::InferRequest request_, lent_;
  std::set<std::string> lent_outputs_;
  Ports in_, out_;
  std::mutex turn_;

  /// A buffer as OpenVINO has it, which only reads inputs.
  template <class Pointer>
  static ov::Tensor view(Port const& port, BasicBuffer<Pointer> const& buffer) {
    return {port.get_element_type(), ov::Shape(buffer.shape.begin(), buffer.shape.end()),
            const_cast<void*>(static_cast<void const*>(buffer.data))};
  }

  /// What is wrong, of a message that names places in OpenVINO's source line by line.
  static std::string reason(std::string const& text) {
    std::istringstream stream(text);
    std::string last = "it gave no reason";
    for (std::string line; std::getline(stream, line);)
      if (line.find_first_not_of(" \t") != std::string::npos &&
          line.rfind("Exception from", 0) != 0 && line.rfind("Check '", 0) != 0)
        last = line.substr(0, 300);
    return last;
  }

  /// One tensor may have several names, and an input that is not read has none.
  static std::vector<TensorInfo> described(Ports const& ports, std::vector<TensorInfo> const& told,
                                           Ports& kept) {
    static std::array<std::pair<ov::element::Type_t, char const*>, 9> const known{
        {{ov::element::f32, "float32"},
         {ov::element::f16, "float16"},
         {ov::element::bf16, "bfloat16"},
         {ov::element::f64, "float64"},
         {ov::element::i64, "int64"},
         {ov::element::i32, "int32"},
         {ov::element::i8, "int8"},
         {ov::element::u8, "uint8"},
         {ov::element::boolean, "bool"}}};
    std::vector<TensorInfo> found;
    for (std::size_t i = 0; i < ports.size(); ++i) {
      auto const& names = ports[i].get_names();
      auto const own = std::find_if(told.begin(), told.end(),
                                    [&](TensorInfo const& t) { return names.count(t.name) > 0; });
      TensorInfo info;
      if (own != told.end())
        info.name = own->name;
      else
        info.name = !names.empty() ? *names.begin() : i < told.size() ? told[i].name : "";
      info.dtype = dtype_of<ov::element::Type_t>(known, ports[i].get_element_type(), info.name);
      for (ov::Dimension const& dim : ports[i].get_partial_shape())
        info.shape.push_back(dim.is_static() ? Dim{dim.get_length(), ""} : Dim{-1, "?"});
      found.push_back(info);
    }
    kept = ports;
    return found;
  }
};
#endif

#if defined(TCOMPILE_WITH_ONNXRUNTIME)
class OnnxRuntime : public Backend {
 public:
  OnnxRuntime(Artifact const& artifact, fs::path const& path, Options const& options) {
    if (api_ == nullptr)
      throw Error(std::string("the ONNX Runtime that is installed, ") +
                      OrtGetApiBase()->GetVersionString() + ", is older than this program's",
                  path.string(), "install a newer one");
    try {
      open(artifact.precision, path, options);
    } catch (Error const& error) {
      close();
      throw Error("ONNX Runtime does not accept the model: " + error.fault, path.string());
    }
  }
  ~OnnxRuntime() override { close(); }

  Tensors run(std::map<std::string, Tensor> const& feed) override {
    std::vector<char const*> names;
    for (TensorInfo const& info : outputs) names.push_back(info.name.c_str());
    std::vector<Value> const made = execute({feed.begin(), feed.end()}, names, {});
    Tensors found;
    for (std::size_t i = 0; i < made.size(); ++i) {
      OrtTensorTypeAndShapeInfo* shape = nullptr;
      check(api_->GetTensorTypeAndShape(made[i].get(), &shape));
      std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> const freed(
          shape, api_->ReleaseTensorTypeAndShapeInfo);
      TensorInfo const info = read(shape, outputs[i].name);
      std::vector<std::int64_t> dims;
      for (Dim const& dim : info.shape) dims.push_back(dim.size);
      Tensor copy(info.dtype, dims);
      void* data = nullptr;
      check(api_->GetTensorMutableData(made[i].get(), &data));
      std::memcpy(copy.bytes.data(), data, copy.bytes.size());
      found.emplace_back(info.name, std::move(copy));
    }
    return found;
  }

  void run(Inputs const& given, Outputs const& wanted, Stream stream) override {
    check_on_cpu("ONNX Runtime", given, wanted, stream);
    std::vector<char const*> names;
    for (auto const& each : wanted) names.push_back(each.first.c_str());
    execute(given, names, wanted);
  }

 private:
  using Value = std::unique_ptr<OrtValue, void (*)(OrtValue*)>;

  /// Run it for the outputs named: into memory that is given for them, else into new memory.
  std::vector<Value> execute(Inputs const& given, std::vector<char const*> const& names,
                             Outputs const& into) const {
    OrtMemoryInfo* memory = nullptr;
    check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    std::unique_ptr<OrtMemoryInfo, void (*)(OrtMemoryInfo*)> const cpu(memory,
                                                                       api_->ReleaseMemoryInfo);
    auto const view = [&](auto const& buffer) {
      OrtValue* value = nullptr;
      check(api_->CreateTensorWithDataAsOrtValue(
          memory, const_cast<void*>(static_cast<void const*>(buffer.data)), buffer.size(),
          buffer.shape.data(), buffer.shape.size(), kind_of(buffer.dtype), &value));
      return Value(value, api_->ReleaseValue);
    };
    std::vector<char const*> in;
    std::vector<Value> fed, made;
    std::vector<OrtValue const*> read;
    for (TensorInfo const& info : inputs) {
      in.push_back(info.name.c_str());
      fed.push_back(view(given.at(info.name)));
      read.push_back(fed.back().get());
    }
    std::vector<OrtValue*> written(names.size(), nullptr);
    for (std::size_t i = 0; i < names.size(); ++i)
      if (auto const place = into.find(names[i]); place != into.end()) {
        made.push_back(view(place->second));
        written[i] = made.back().get();
      }
    bool const own = made.empty();
    check(api_->Run(session_, nullptr, in.data(), read.data(), in.size(), names.data(),
                    names.size(), written.data()));
    if (own)
      for (OrtValue* value : written) made.emplace_back(value, api_->ReleaseValue);
    return made;
  }

  OrtApi const* api_ = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;

  void open(std::string const& precision, fs::path const& path, Options const& options) {
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "tcompile", &env_));
    OrtSessionOptions* settings = nullptr;
    check(api_->CreateSessionOptions(&settings));
    std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions*)> const owned(
        settings, api_->ReleaseSessionOptions);
    if (options.threads > 0) check(api_->SetIntraOpNumThreads(settings, options.threads));
    if (precision != "fp32" && precision != "int8") {
      // On a CPU its fusions of fp16 are not sound, and some leave nodes without a kernel.
      check(api_->SetSessionGraphOptimizationLevel(settings, ORT_ENABLE_BASIC));
      check(api_->DisableMemPattern(settings));
    }
    check(api_->CreateSession(env_, path.c_str(), settings, &session_));
    std::size_t count = 0;
    check(api_->SessionGetInputCount(session_, &count));
    for (std::size_t i = 0; i < count; ++i)
      inputs.push_back(described(i, api_->SessionGetInputName, api_->SessionGetInputTypeInfo));
    check(api_->SessionGetOutputCount(session_, &count));
    for (std::size_t i = 0; i < count; ++i)
      outputs.push_back(described(i, api_->SessionGetOutputName, api_->SessionGetOutputTypeInfo));
  }
  void close() {
    if (session_ != nullptr) api_->ReleaseSession(session_);
    if (env_ != nullptr) api_->ReleaseEnv(env_);
  }

  static constexpr std::array<std::pair<ONNXTensorElementDataType, char const*>, 9> known_{
      {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32"},
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "float16"},
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, "bfloat16"},
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, "float64"},
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, "int64"},
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, "int32"},
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, "int8"},
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, "uint8"},
       {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, "bool"}}};

  static ONNXTensorElementDataType kind_of(std::string const& dtype) {
    for (auto const& [kind, name] : known_)
      if (dtype == name) return kind;
    throw Error("there is no tensor of '" + dtype + "' in ONNX Runtime");
  }
  void check(OrtStatus* status) const {
    if (status == nullptr) return;
    std::string const text = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    throw Error(text, "ONNX Runtime", "", 1);
  }
  TensorInfo read(OrtTensorTypeAndShapeInfo const* shape, std::string const& name) const {
    ONNXTensorElementDataType kind;
    std::size_t count = 0;
    check(api_->GetTensorElementType(shape, &kind));
    check(api_->GetDimensionsCount(shape, &count));
    std::vector<std::int64_t> dims(count);
    check(api_->GetDimensions(shape, dims.data(), count));
    TensorInfo info{name, dtype_of(known_, kind, name), {}};
    for (std::int64_t dim : dims) info.shape.push_back({dim, dim < 0 ? "?" : ""});
    return info;
  }
  template <class Name, class Type>
  TensorInfo described(std::size_t i, Name get_name, Type get_type) const {
    OrtAllocator* allocator = nullptr;
    check(api_->GetAllocatorWithDefaultOptions(&allocator));
    char* text = nullptr;
    check(get_name(session_, i, allocator, &text));
    std::string const name = text;
    check(api_->AllocatorFree(allocator, text));
    OrtTypeInfo* type = nullptr;
    check(get_type(session_, i, &type));
    std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> const owned(type, api_->ReleaseTypeInfo);
    OrtTensorTypeAndShapeInfo const* shape = nullptr;
    check(api_->CastTypeInfoToTensorInfo(type, &shape));
    if (shape == nullptr) throw Error("'" + name + "' is not a tensor");
    return read(shape, name);
  }
};
#endif

#if defined(TCOMPILE_WITH_ENGINES)
/// TensorRT 10.3 to 11.x, and TensorRT-RTX: their API is the same for this.
class Engine : public Backend {
 public:
#if defined(TCOMPILE_WITH_TENSORRT_RTX)
  static constexpr char const* title = "TensorRT-RTX";
  static constexpr char const* package = "tensorrt-rtx";
#else
  static constexpr char const* title = "TensorRT";
  static constexpr char const* package = "tensorrt";
#endif

  /// `plan`: what the file at `path` held when it was checked.
  Engine(Artifact const& artifact, fs::path const& path, std::string plan, Options const& options)
      : path_(path.string()), device_(options.device), graphs_(options.cuda_graphs) {
    fs::path const lean = check_version(artifact, path, title, package, installed());
    check_gpu(artifact);
    OnDevice const there(*this);
    if (artifact.plugins && !artifact.compatibility.plugins) load_plugins(artifact);
    runtime_.reset(nvinfer1::createInferRuntime(Log::one()));
    // Its sha256 was checked: `check_host_code`.
    if (runtime_ && artifact.compatibility.host_code()) runtime_->setEngineHostCodeAllowed(true);
    nvinfer1::IRuntime* reader = runtime_.get();
    if (runtime_ && !lean.empty()) {
      lean_.reset(reader = runtime_->loadRuntime(lean.c_str()));
      if (!lean_)
        throw Error(std::string(title) + " does not load the lean runtime: " + Log::one().last(),
                    lean.string(), "it is libnvinfer_lean.so of the TensorRT that built the engine");
    }
    if (reader != nullptr) engine_.reset(reader->deserializeCudaEngine(plan.data(), plan.size()));
    std::string().swap(plan);  // an engine holds all weights
    if (!engine_)
      throw Error(std::string(title) + " does not load the engine: " + Log::one().last(), path_,
                  "build it again with this version, on this machine or for its GPU");
    context_.reset(new_context());
    if (!context_) throw Error(std::string(title) + " has no memory for the engine", path_, "", 1);
    try {
      call(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
      call(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "cudaEventCreate");
      describe();
    } catch (...) {
      close();
      throw;
    }
  }
  ~Engine() override {
    // On its GPU, which that of the thread need not be. At the end of a process CUDA may be gone.
    int before = 0;
    bool const there = cudaGetDevice(&before) == cudaSuccess && before != device_;
    if (there) cudaSetDevice(device_);
    close();
    context_.reset(), engine_.reset(), lean_.reset(), runtime_.reset();
    if (there) cudaSetDevice(before);
  }

  Tensors run(std::map<std::string, Tensor> const& feed) override {
    std::lock_guard<std::mutex> const turn(turn_);
    OnDevice const there(*this);
    Inputs const given(feed.begin(), feed.end());
    set_shapes(given);
    Tensors found;
    for (TensorInfo const& info : outputs) {
      nvinfer1::Dims const shape = context_->getTensorShape(info.name.c_str());
      found.emplace_back(info.name, Tensor(info.dtype, {shape.d, shape.d + shape.nbDims}));
    }
    Outputs wanted;
    for (auto& [name, tensor] : found) wanted.emplace(name, tensor);
    execute(given, wanted, nullptr);
    return found;
  }

  /// The version of TensorRT that this program runs with.
  static std::string installed() {
    int const number = getInferLibVersion();
    return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." +
           std::to_string(number % 100);
  }

  void run(Inputs const& given, Outputs const& wanted, Stream stream) override {
    std::lock_guard<std::mutex> const turn(turn_);
    OnDevice const there(*this);
    set_shapes(given);
    std::map<std::string, std::int64_t> sizes;
    for (TensorInfo info : outputs)
      if (auto const place = wanted.find(info.name); place != wanted.end()) {
        nvinfer1::Dims const shape = context_->getTensorShape(info.name.c_str());
        info.shape.clear();
        for (int d = 0; d < shape.nbDims; ++d) info.shape.push_back({shape.d[d], ""});
        check_tensor("output", place->second, info, sizes, path_);
      }
    execute(given, wanted, static_cast<cudaStream_t>(stream));
  }

 private:
  /// TensorRT keeps the first logger that it is given, and calls it from any thread: there is one,
  /// which is never destroyed.
  class Log : public nvinfer1::ILogger {
   public:
    static Log& one() {
      static Log* const log = new Log;
      return *log;
    }
    void log(Severity severity, char const* text) noexcept override {
      if (severity > Severity::kERROR) return;
      try {
        std::lock_guard<std::mutex> const turn(turn_);
        last_ = text;
      } catch (...) {  // no memory for the text
      }
    }
    /// The last error, once.
    std::string last() {
      std::lock_guard<std::mutex> const turn(turn_);
      return std::exchange(last_, "it gave no reason");
    }

   private:
    std::string last_ = "it gave no reason";
    std::mutex turn_;
  };

  using Shapes = std::map<std::string, std::vector<std::int64_t>>;
  using Addresses = std::map<std::string, void*>;

  /// While it lives, the engine's GPU is that of the calling thread.
  class OnDevice {
   public:
    explicit OnDevice(Engine const& engine) : own_(engine.device_) {
      engine.call(cudaGetDevice(&before_), "cudaGetDevice");
      engine.call(cudaSetDevice(own_), "cudaSetDevice");
    }
    ~OnDevice() {
      if (before_ != own_) cudaSetDevice(before_);
    }
    OnDevice(OnDevice const&) = delete;
    OnDevice& operator=(OnDevice const&) = delete;

   private:
    int own_, before_ = 0;
  };

  std::string path_;
  int device_;
  bool graphs_;
  // In this order: each needs the one before it.
  std::unique_ptr<nvinfer1::IRuntime> runtime_, lean_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t done_ = nullptr;  // with the last run: the engine has memory for one at a time
  Addresses buffers_;
  cudaGraphExec_t graph_ = nullptr;
  // Of the last run, and what the graph is for: the shapes of inputs, and where all tensors lie.
  Shapes shapes_;
  Addresses addresses_;
  std::mutex turn_;

  void call(cudaError_t status, char const* name) const {
    if (status != cudaSuccess)
      throw Error(std::string(name) + " failed: " + cudaGetErrorString(status),
                  "GPU " + std::to_string(device_), "", 1);
  }

  /// TensorRT-RTX compiles kernels as they are first needed: it captures graphs itself, since it
  /// knows when all of them are there. Those of TensorRT are captured by `launch`.
  nvinfer1::IExecutionContext* new_context() {
#if defined(TCOMPILE_WITH_TENSORRT_RTX)
    if (std::exchange(graphs_, false)) {
#if defined(TRT_MAJOR_RTX) && (TRT_MAJOR_RTX > 1 || TRT_MINOR_RTX >= 3)
      std::unique_ptr<nvinfer1::IRuntimeConfig> const config(engine_->createRuntimeConfig());
      if (!config ||
          !config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE))
        throw Error("TensorRT-RTX takes no CUDA graphs: " + Log::one().last(), path_, "", 1);
      return engine_->createExecutionContext(config.get());
#else
      throw Error("TensorRT-RTX has CUDA graphs from 1.3 on", "cuda_graphs",
                  "build the program with a newer one");
#endif
    }
#endif
    return engine_->createExecutionContext();
  }

  /// Tell the engine the shapes of its inputs, from which those of its outputs follow. Not again
  /// those that it knows: what it does after it was told a shape no graph may hold.
  void set_shapes(Inputs const& given) {
    Shapes shapes;
    for (auto const& [name, buffer] : given) shapes[name] = buffer.shape;
    if (shapes == shapes_) return;
    forget();
    for (auto const& [name, shape] : shapes)
      if (!context_->setInputShape(name.c_str(), dims(shape))) {
        forget();
        throw Error("the engine does not take " + shown(shape) + " for input '" + name + "'" +
                        (batches ? ", for batches of " + std::to_string(batches->first) + " to " +
                                       std::to_string(batches->second)
                                 : ""),
                    path_);
      }
    shapes_ = std::move(shapes);
  }

  /// Run it once its shapes are set: on the caller's stream, or on its own, which is waited for.
  /// What lies in the CPU's memory is copied, in the order of the stream.
  void execute(Inputs const& given, Outputs const& wanted, cudaStream_t callers) {
    Addresses addresses = buffers_;
    bool on_gpu = false;
    auto const place = [&](char const* kind, auto const& tensors) {
      for (auto const& [name, buffer] : tensors)
        if (void* const there = device_address(named(kind, name), buffer))
          addresses[name] = there, on_gpu = true;
    };
    place("input", given), place("output", wanted);
    cudaStream_t const stream = callers != nullptr ? callers : stream_;
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    if (callers != nullptr)
      call(cudaStreamIsCapturing(stream, &capturing), "cudaStreamIsCapturing");
    else if (on_gpu)  // what made the inputs may be under way: our own stream does not wait for it
      call(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
    bool const recorded = capturing == cudaStreamCaptureStatusNone;
    // Where this throws, copies may be under way: they end before what they read and write is gone.
    struct Wait {
      cudaStream_t stream;
      bool wanted;
      ~Wait() {
        if (wanted) cudaStreamSynchronize(stream);
      }
    } wait{stream, recorded};
    if (recorded) call(cudaStreamWaitEvent(stream, done_, 0), "cudaStreamWaitEvent");
    for (auto const& [name, buffer] : given)
      if (addresses.at(name) == buffers_.at(name))
        call(cudaMemcpyAsync(buffers_.at(name), buffer.data, buffer.size(), cudaMemcpyHostToDevice,
                             stream),
             "cudaMemcpyAsync");
    launch(addresses, stream, recorded);
    for (auto const& [name, buffer] : wanted)
      if (addresses.at(name) == buffers_.at(name))
        call(cudaMemcpyAsync(buffer.data, buffers_.at(name), buffer.size(), cudaMemcpyDeviceToHost,
                             stream),
             "cudaMemcpyAsync");
    if (recorded) call(cudaEventRecord(done_, stream), "cudaEventRecord");
    if (callers == nullptr) call(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    wait.wanted = false;
  }

  /// Where the GPU has a buffer; null for what lies in the CPU's memory, to be copied. Throws Error
  /// where it does not lie where it is said to, or where TensorRT does not take it.
  template <class Pointer>
  void* device_address(std::string const& what, BasicBuffer<Pointer> const& buffer) const {
    cudaPointerAttributes found{};
    call(cudaPointerGetAttributes(&found, buffer.data), "cudaPointerGetAttributes");
    if (buffer.memory == Memory::host) {
      if (found.type == cudaMemoryTypeDevice)
        throw Error("is said to be in the CPU's memory, and is in that of GPU " +
                        std::to_string(found.device),
                    what, "say Memory::device");
      return nullptr;
    }
    if (found.type == cudaMemoryTypeUnregistered || found.devicePointer == nullptr)
      throw Error("is said to be in the memory of a GPU, and is not", what,
                  "allocate it with cudaMalloc; Memory::host is copied");
    if (found.type == cudaMemoryTypeDevice && found.device != device_)
      throw Error("is in the memory of GPU " + std::to_string(found.device) +
                      ", the engine runs on GPU " + std::to_string(device_),
                  what, "copy it there, or load the model with that `device`");
    if (reinterpret_cast<std::uintptr_t>(found.devicePointer) % 256 != 0)
      throw Error("lies at an address that is not a multiple of 256, as TensorRT wants it", what,
                  "cudaMalloc gives such; a later row of a batch may not be one");
    return found.devicePointer;
  }

  void enqueue(cudaStream_t stream) {
    if (context_->enqueueV3(stream)) return;
    forget();
    throw Error(std::string(title) + " cannot run the engine: " + Log::one().last(), path_, "", 1);
  }

  /// Run it on buffers at these addresses. A graph holds shapes and addresses, and TensorRT wants
  /// its context left alone as long as one is used: there is one, of what comes twice in succession.
  /// What the first run of a shape does no graph may hold.
  void launch(Addresses const& addresses, cudaStream_t stream, bool graph) {
    bool const unchanged = addresses == addresses_;
    if (!unchanged) {
      forget_graph();
      addresses_.clear();
      for (auto const& [name, address] : addresses)
        if (!context_->setTensorAddress(name.c_str(), address))
          throw Error(std::string(title) + " does not take the buffer of '" + name +
                          "': " + Log::one().last(),
                      path_, "", 1);
    }
    if (graphs_ && graph && unchanged) {
      if (graph_ == nullptr) capture();
      return call(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch");
    }
    enqueue(stream);
    addresses_ = addresses;
  }

  /// On the engine's own stream, since another thread may put work into the caller's. Nothing of
  /// it is run.
  void capture() {
    call(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
         "cudaStreamBeginCapture");
    bool const queued = context_->enqueueV3(stream_);
    cudaGraph_t graph = nullptr;
    cudaError_t status = cudaStreamEndCapture(stream_, &graph);
    if (queued && status == cudaSuccess)
      status = cudaGraphInstantiateWithFlags(&graph_, graph, 0);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (!queued)
      throw Error(std::string(title) + " cannot capture the engine: " + Log::one().last(), path_,
                  "run it without cuda_graphs", 1);
    call(status, "capturing a CUDA graph");
  }

  /// A graph is for the shapes and addresses that it was captured with, and for them alone.
  void forget_graph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
    graph_ = nullptr;
  }
  void forget() {
    forget_graph();
    shapes_.clear(), addresses_.clear();
  }

  void check_gpu(Artifact const& artifact) const {
    std::string const where = artifact.directory.string();
    std::string const whose = "its engine is for a GPU (" + artifact.target + "), and ";
    int count = 0, driver = 0, own = 0;
    cudaError_t const status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
      cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&own);
      auto const version = [](int number) {
        return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
      };
      if (driver == 0) throw Error(whose + "this machine has no NVIDIA driver", where, on_cpu);
      if (status == cudaErrorInsufficientDriver)
        throw Error(whose + "the NVIDIA driver is for CUDA " + version(driver) +
                        ", this program for " + version(own),
                    where, std::string("update the driver; ") + on_cpu);
      throw Error(whose + "this machine has an NVIDIA driver, but no GPU that this process may use",
                  where, on_cpu);
    }
    if (device_ < 0 || device_ >= count)
      throw Error(
          "there is no GPU " + std::to_string(device_) + ", only 0 to " + std::to_string(count - 1),
          "device=" + std::to_string(device_));
    check_capability(artifact, gpu_capability());
  }

  std::string gpu_capability() const {
    int major = 0, minor = 0;
    call(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_),
         "cudaDeviceGetAttribute");
    call(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_),
         "cudaDeviceGetAttribute");
    return std::to_string(major) + "." + std::to_string(minor);
  }

  void load_plugins(Artifact const& artifact) const {
    fs::path library = artifact.directory / "plugins" / "libtcompile_plugins.so";
    char const* named = std::getenv("TCOMPILE_PLUGINS");
    std::error_code ignored;
    if (!fs::is_regular_file(library, ignored) && named != nullptr) library = named;
    check_plugins(library, installed(), gpu_capability());
    if (getPluginRegistry()->loadLibrary(library.c_str()) == nullptr)
      throw Error("TensorRT does not load the plugin library", library.string());
  }

  void describe() {
    static std::array<std::pair<nvinfer1::DataType, char const*>, 9> const known{
        {{nvinfer1::DataType::kFLOAT, "float32"},
         {nvinfer1::DataType::kHALF, "float16"},
         {nvinfer1::DataType::kBF16, "bfloat16"},
         {nvinfer1::DataType::kFP8, "float8_e4m3fn"},
         {nvinfer1::DataType::kINT64, "int64"},
         {nvinfer1::DataType::kINT32, "int32"},
         {nvinfer1::DataType::kINT8, "int8"},
         {nvinfer1::DataType::kUINT8, "uint8"},
         {nvinfer1::DataType::kBOOL, "bool"}}};
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      char const* name = engine_->getIOTensorName(i);
      nvinfer1::Dims const shape = engine_->getTensorShape(name);
      TensorInfo info{name, dtype_of(known, engine_->getTensorDataType(name), name), {}};
      for (int d = 0; d < shape.nbDims; ++d)
        info.shape.push_back({shape.d[d], shape.d[d] < 0 ? "batch" : ""});
      bool const input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      if (input && std::any_of(info.shape.begin(), info.shape.end(),
                               [](Dim const& d) { return d.free(); })) {
        auto const size = [&](nvinfer1::OptProfileSelector which) {
          return engine_->getProfileShape(name, 0, which);
        };
        nvinfer1::Dims const largest = size(nvinfer1::OptProfileSelector::kMAX);
        if (info.shape[0].free())
          batches = {size(nvinfer1::OptProfileSelector::kMIN).d[0], largest.d[0]};
        context_->setInputShape(name, largest);
      }
      (input ? inputs : outputs).push_back(std::move(info));
    }
    // Buffers of the largest size, whose addresses stay.
    for (auto const* side : {&inputs, &outputs})
      for (TensorInfo const& info : *side) {
        nvinfer1::Dims const shape = context_->getTensorShape(info.name.c_str());
        std::size_t bytes = item_size(info.dtype);
        for (int d = 0; d < shape.nbDims; ++d) bytes *= static_cast<std::size_t>(shape.d[d]);
        void* buffer = nullptr;
        call(cudaMalloc(&buffer, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
        buffers_[info.name] = buffer;
      }
  }

  static nvinfer1::Dims dims(std::vector<std::int64_t> const& shape) {
    nvinfer1::Dims found{};
    found.nbDims = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), found.d);
    return found;
  }

  void close() {
    if (done_ != nullptr) cudaEventSynchronize(done_);  // a caller's stream may be at it
    forget_graph();
    for (auto const& each : buffers_) cudaFree(each.second);
    if (done_ != nullptr) cudaEventDestroy(done_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
};
#endif

// ---- The model ---------------------------------------------------------------------------------

/// A loaded artifact: call it with images. Several threads may call one model; on OpenVINO and GPUs
/// each call waits for the one before it.
class Model {
 public:
  Artifact artifact;
  std::string runtime;
  fs::path path;  ///< the file that runs

  /// Check an artifact, and load it. Throws Error.
  explicit Model(fs::path const& directory, Options const& options = {})
      : artifact(read_artifact(directory)), runtime(chosen(artifact, options.runtime)) {
    if (!artifact.fault.empty() && !options.allow_failed)
      throw Error("this build failed and was kept for debugging: " + artifact.fault,
                  directory.string(), "build it again; allow_failed loads it all the same");
    std::string plan;  // of an engine
    if (runtime == "onnxruntime" || runtime == "openvino") {
      check_file(artifact, "model.onnx");
      for (auto const& file : artifact.files)  // weights beside it
        if (file.first.rfind("model.onnx.", 0) == 0) check_file(artifact, file.first);
      path = directory / "model.onnx";
    } else {
      std::string const engine = engine_file();
      plan = read_engine(artifact, engine);
      path = directory / engine;
    }
    if (artifact.document.contains("preprocess") && !artifact.document["preprocess"].is_null())
      preprocessing_.emplace(artifact.document["preprocess"], directory.string());
#if defined(TCOMPILE_WITH_OPENVINO)
    if (runtime == "openvino") backend_ = std::make_unique<OpenVino>(artifact, path, options);
#endif
#if defined(TCOMPILE_WITH_ONNXRUNTIME)
    if (runtime == "onnxruntime") backend_ = std::make_unique<OnnxRuntime>(artifact, path, options);
#endif
#if defined(TCOMPILE_WITH_ENGINES)
    if (runtime == Engine::package)
      backend_ = std::make_unique<Engine>(artifact, path, std::move(plan), options);
#endif
    check_contract("inputs", backend_->inputs, artifact.inputs, path.string());
    check_contract("outputs", backend_->outputs, artifact.outputs, path.string());
  }

  std::vector<TensorInfo> const& inputs() const { return backend_->inputs; }
  std::vector<TensorInfo> const& outputs() const { return backend_->outputs; }
  std::vector<std::string> const& labels() const { return artifact.labels; }

  /// Throw Error unless the artifact has the outputs that a program was written for.
  void require(std::vector<std::string> const& names) const {
    for (std::string const& name : names) {
      auto const& all = artifact.outputs;
      if (std::none_of(all.begin(), all.end(), [&](auto const& t) { return t.name == name; }))
        throw Error(
            "has no output '" + name + "', which this program is written for; it has " + shown(all),
            artifact.directory.string(), "`tcompile init-app` writes a program for it");
    }
  }

  /// Prepare images as the artifact records, and run it: one row of every output for each of them.
  /// Where the batch is fixed, or an engine's largest is exceeded, they are cut into batches, and
  /// the last one is filled up.
  Result operator()(std::vector<Image> const& images) const {
    if (images.empty()) throw Error("an empty list", "images");
    if (inputs().size() != 1)
      throw Error("the model takes " + shown(inputs()), "images",
                  "give a tensor for each input, by its name");
    TensorInfo const& input = inputs()[0];
    std::vector<Tensor> rows;
    for (Image const& image : images) rows.push_back(prepare(image));
    if (input.shape.size() != rows[0].shape.size())
      throw Error("the model takes no images", "input '" + input.name + "'");
    bool const packed = input.shape.size() == 2;  // patches: one image a run
    std::size_t const count = images.size();
    std::size_t size = packed                   ? 1
                       : !input.shape[0].free() ? static_cast<std::size_t>(input.shape[0].size)
                                                : count;
    if (backend_->batches)
      size = std::clamp<std::size_t>(count, backend_->batches->first, backend_->batches->second);
    Tensors all;
    for (std::size_t start = 0; start < count; start += size) {
      Tensor batch(input.dtype, rows[0].shape);
      if (!packed) batch.shape[0] = static_cast<std::int64_t>(size);
      batch.bytes.clear();
      for (std::size_t i = start; i < start + size; ++i) {
        Tensor const& row = rows[std::min(i, count - 1)];
        batch.bytes.insert(batch.bytes.end(), row.bytes.begin(), row.bytes.end());
      }
      Tensors made = run({{input.name, std::move(batch)}}).outputs;
      for (std::size_t i = 0; i < made.size(); ++i) {
        bool const whole = packed && !is_bookkeeping(made[i].first);
        Tensor part =
            by_sample(std::move(made[i].second), whole ? 0 : static_cast<std::int64_t>(size));
        std::size_t const of_one = part.bytes.size() / size;
        part.bytes.resize(std::min(size, count - start) * of_one);
        if (start == 0) all.emplace_back(made[i].first, Tensor{part}), all[i].second.bytes.clear();
        all[i].second.bytes.insert(all[i].second.bytes.end(), part.bytes.begin(), part.bytes.end());
        all[i].second.shape[0] = static_cast<std::int64_t>(std::min(count, start + size));
      }
    }
    return {std::move(all), artifact.labels, artifact.token_index};
  }

  /// Run it once on tensors that are prepared, one for each input, as it takes them.
  Result run(std::map<std::string, Tensor> const& feed) const {
    std::map<std::string, std::int64_t> sizes;
    check_inputs(feed, sizes);
    for (auto const& [name, tensor] : feed) {
      if (tensor.bytes.size() != tensor.count() * item_size(tensor.dtype))
        throw Error("has " + std::to_string(tensor.bytes.size()) + " bytes, its shape " +
                        std::to_string(tensor.count() * item_size(tensor.dtype)),
                    named("input", name));
      if (tensor.dtype == "float32" &&
          !std::all_of(tensor.data<float>(), tensor.data<float>() + tensor.count(),
                       [](float x) { return std::isfinite(x); }))
        throw Error("has NaN or Inf", named("input", name));
    }
    return {backend_->run(feed), artifact.labels, artifact.token_index};
  }

  /// Run it once in memory of the caller's: every input is read where it lies, and outputs, one or
  /// more of them, are written where they are wanted.
  ///
  /// On a CPU buffers are in its memory, and it is done when this returns. An engine takes both
  /// memories: what is in the CPU's it copies. With a stream (a cudaStream_t of its GPU) the run is
  /// put into that and this returns: inputs and outputs are the run's until the stream is there.
  /// Without one, inputs may be what the default stream is making, and it waits until all is done.
  /// A stream that is being captured is let be captured, once a run with these shapes was made
  /// before; as long as such a graph is used the model is not to be called in another way.
  ///
  /// Throws Error, before anything runs, for a name, dtype, shape or address that does not fit.
  /// Values are not looked at.
  void run(Inputs const& inputs, Outputs const& outputs, Stream stream = nullptr) const {
    std::map<std::string, std::int64_t> sizes;
    check_inputs(inputs, sizes);
    if (outputs.empty())
      throw Error("none is wanted; the model gives " + shown(artifact.outputs), "outputs");
    for (auto const& [name, buffer] : outputs) {
      TensorInfo const* const info = find(backend_->outputs, name);
      if (info == nullptr)
        throw Error("has '" + name + "'; the model gives " + shown(artifact.outputs), "outputs");
      check_tensor("output", buffer, contract(*info, artifact.outputs), sizes, path.string());
    }
    for (auto const& [name, buffer] : inputs) check_memory("input", name, buffer);
    for (auto const& [name, buffer] : outputs) check_memory("output", name, buffer);
    check_apart(inputs, outputs);
    backend_->run(inputs, outputs, stream);
  }

  /// The shape of an input or output, with a number in place of every free dim.
  std::vector<std::int64_t> shape_of(std::string const& name, std::int64_t batch = 1) const {
    for (auto const* side : {&artifact.inputs, &artifact.outputs})
      if (TensorInfo const* const info = find(*side, name)) {
        std::map<std::string, std::int64_t> sizes;
        for (auto const& every : {artifact.inputs, artifact.outputs})
          for (TensorInfo const& each : every)
            for (Dim const& dim : each.shape)
              if (dim.free() && dim.name.find('*') == std::string::npos) sizes[dim.name] = batch;
        std::vector<std::int64_t> shape;
        for (Dim const& dim : info->shape) shape.push_back(settled(dim, sizes).value_or(batch));
        return shape;
      }
    throw Error("there is no '" + name + "'; the model takes " + shown(artifact.inputs) +
                    " and gives " + shown(artifact.outputs),
                "shape_of");
  }

  /// One image as a row of the input, in the input's dtype.
  Tensor prepare(Image const& image) const {
    if (!preprocessing_)
      throw Error("does not say how images are prepared for it", artifact.directory.string(),
                  "build it again with --preprocess, or give it tensors");
    return (*preprocessing_)(image).to(inputs()[0].dtype);
  }

 private:
  std::optional<Preprocessing> preprocessing_;
  std::unique_ptr<Backend> backend_;

  static TensorInfo const* find(std::vector<TensorInfo> const& all, std::string const& name) {
    for (TensorInfo const& each : all)
      if (each.name == name) return &each;
    return nullptr;
  }

  /// The runtime's tensor with the manifest's names for what is free in it.
  static TensorInfo contract(TensorInfo info, std::vector<TensorInfo> const& told) {
    if (TensorInfo const* const own = find(told, info.name)) info.shape = own->shape;
    return info;
  }

  /// Throw Error unless each input is there and as the model takes it, and nothing else is.
  template <class Given>
  void check_inputs(std::map<std::string, Given> const& given,
                    std::map<std::string, std::int64_t>& sizes) const {
    for (auto const& each : given)
      if (find(inputs(), each.first) == nullptr)
        throw Error("has '" + each.first + "'; the model takes " + shown(inputs()), "inputs");
    for (TensorInfo const& info : inputs()) {
      auto const found = given.find(info.name);
      if (found == given.end())
        throw Error("has no '" + info.name + "'; the model takes " + shown(inputs()), "inputs");
      check_tensor("input", found->second, contract(info, artifact.inputs), sizes, path.string());
    }
  }

  /// The runtime asked for, or the target's; what is built for one CPU runtime runs in the other.
  static std::string chosen(Artifact const& artifact, std::string const& asked) {
    auto const listed = [](auto const& names) {
      return joined(names, [](std::string const& n) { return n; });
    };
    auto const is_engine = [](std::string const& name) { return name.rfind("tensorrt", 0) == 0; };
    std::set<std::string> const known{"onnxruntime", "openvino", "tensorrt-rtx", "tensorrt"};
    std::vector<std::string> const here = runtimes();
    auto const built_in = [&](std::string const& name) {
      return std::find(here.begin(), here.end(), name) != here.end();
    };
    std::string const where = artifact.directory.string(), &own = artifact.runtime;
    std::string runtime = asked.empty() ? own : asked;
    if (!known.count(runtime))
      throw Error("there is no runtime '" + runtime + "'", "runtime", "one of " + listed(known));
    if (is_engine(runtime) && runtime != own)
      throw Error(
          "was built for " + artifact.target + ", there is no engine for " + runtime + " in it",
          where, "build it for a target that runs it there");
    if (asked.empty() && !is_engine(runtime) && !built_in(runtime))
      runtime = runtime == "openvino" ? "onnxruntime" : "openvino";
    if (!built_in(runtime))
      throw Error(
          "is for " + artifact.target + " and runs in " + own + ", this program was built with " +
              (here.empty() ? "no runtime" : listed(here)),
          where,
          is_engine(own) && !is_engine(runtime)
              ? "build the program with " + runtime
              : "build the program with " + runtime + ", or build the artifact for its runtime");
    return runtime;
  }

  /// The engine that the manifest lists; of several that were built on the device the newest that
  /// this TensorRT runs, else the newest.
  std::string engine_file() const {
    std::string found;
    for (auto const& file : artifact.files)
      if (fs::path(file.first).extension() == ".engine") found = file.first;
    bool const jetson = artifact.document["target"]["runtime"] == "jetson";
    using Rank = std::pair<bool, std::pair<int, int>>;  // whether it fits, and its version
    Rank best{false, {-1, -1}};
    std::string installed;
#if defined(TCOMPILE_WITH_ENGINES)
    installed = Engine::installed();
#endif
    std::error_code ignored;
    if (jetson)
      for (auto const& file : fs::directory_iterator(artifact.directory / "engine", ignored)) {
        std::string const name = file.path().filename().string();
        std::pair<int, int> version{};
        std::sscanf(name.c_str(), "model.trt%d.%d", &version.first, &version.second);
        std::string const built =
            std::to_string(version.first) + "." + std::to_string(version.second);
        // Others are copies that somebody keeps: `model.trt10.3.old.engine`.
        if (name != "model.trt" + built + ".engine") continue;
        bool const fits =
            !installed.empty() && runs_in(built, installed, artifact.compatibility.version);
        if (Rank const rank{fits, version}; rank > best) best = rank, found = "engine/" + name;
      }
    if (found.empty())
      throw Error(
          "there is no engine for " + artifact.target + " in it", artifact.directory.string(),
          (jetson ? "run `sh build_engine.sh` in it, on the device; " : "build it again; ") +
              std::string(on_cpu));
    return found;
  }

  static bool is_bookkeeping(std::string const& name) {
    for (char const* kind : {"token_index", "token_owner", "token_size", "tcompile."})
      if (name.rfind(kind, 0) == 0) return true;
    return false;
  }

  /// An output of a run of `batch` samples (0: of one, without its axis), samples first: some
  /// models give [N, B, C], some merge the batch with another axis, and what has none is every
  /// sample's.
  static Tensor by_sample(Tensor out, std::int64_t batch) {
    auto& shape = out.shape;
    if (batch == 0) {
      shape.insert(shape.begin(), 1);
    } else if (!shape.empty() && shape[0] == batch) {
    } else if (shape.size() > 1 && shape[1] == batch) {
      std::size_t const rows = static_cast<std::size_t>(shape[0]),
                        samples = static_cast<std::size_t>(batch),
                        bytes = rows ? out.bytes.size() / rows / samples : 0;
      Tensor const old = out;
      std::swap(shape[0], shape[1]);
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t s = 0; s < samples; ++s)
          std::memcpy(out.bytes.data() + (s * rows + r) * bytes,
                      old.bytes.data() + (r * samples + s) * bytes, bytes);
    } else if (!shape.empty() && shape[0] && shape[0] % batch == 0) {
      shape[0] /= batch;
      shape.insert(shape.begin(), batch);
    } else {
      std::vector<std::uint8_t> const one = out.bytes;
      shape.insert(shape.begin(), batch);
      for (std::int64_t i = 1; i < batch; ++i)
        out.bytes.insert(out.bytes.end(), one.begin(), one.end());
    }
    return out;
  }
};

}  // namespace tcompile
