/* What TensorRT would do with the plugins, as plain C for tests: creators, fields, types, shapes,
 * formats, enqueue. A builder of shape expressions that computes with numbers stands in for
 * TensorRT's own. */
#include <NvInferRuntime.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "call.h"

using namespace nvinfer1;

namespace {

struct Expression;
struct Value final : apiv::VDimensionExpr {
  int64_t number = 0;
  bool known = true;
  bool isConstant() const override { return known; }
  int64_t getConstantValue() const override { return known ? number : -1; }
  bool isSizeTensor() const override { return false; }
};
struct Expression final : IDimensionExpr {
  Value value;
  Expression(int64_t number, bool known) {
    value.number = number;
    value.known = known;
    mImpl = &value;
  }
  ~Expression() noexcept override = default;
};
int64_t number_of(IDimensionExpr const& e) { return static_cast<Expression const&>(e).value.number; }

struct Arithmetic final : apiv::VExprBuilder {
  std::deque<Expression> made;
  IDimensionExpr const* keep(int64_t number, bool known) {
    made.emplace_back(number, known);
    return &made.back();
  }
  IDimensionExpr const* constant(int64_t value) override { return keep(value, true); }
  IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& a,
                                  IDimensionExpr const& b) override {
    bool const known = a.isConstant() && b.isConstant();
    int64_t const x = number_of(a), y = number_of(b);
    switch (op) {
      case DimensionOperation::kSUM: return keep(x + y, known);
      case DimensionOperation::kSUB: return keep(x - y, known);
      case DimensionOperation::kPROD: return keep(x * y, known);
      case DimensionOperation::kFLOOR_DIV: return keep(x / y, known);
      default: return nullptr;
    }
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&,
                                          IDimensionExpr const&) override {
    return nullptr;
  }
};
struct Builder final : IExprBuilder {
  Arithmetic arithmetic;
  Builder() { mImpl = &arithmetic; }
  ~Builder() noexcept override = default;
};

std::string messages;
struct Logger final : ILogger {
  void log(Severity severity, AsciiChar const* text) noexcept override {
    messages += std::to_string(static_cast<int>(severity)) + " " + text + "\n";
  }
} logger;
struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);

IPluginCreatorV3One* creator_of(GetCreators get, char const* name) {
  int32_t count = 0;
  IPluginCreatorInterface* const* all = get(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* const creator = static_cast<IPluginCreatorV3One*>(all[i]);
    if (std::strcmp(creator->getPluginName(), name) == 0) return creator;
  }
  return nullptr;
}

template <class T>
T* capability(void* plugin, PluginCapabilityType type) {
  return static_cast<T*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}
IPluginV3OneCore* core(void* p) { return capability<IPluginV3OneCore>(p, PluginCapabilityType::kCORE); }
IPluginV3OneBuild* build(void* p) {
  return capability<IPluginV3OneBuild>(p, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(void* p) {
  return capability<IPluginV3OneRuntime>(p, PluginCapabilityType::kRUNTIME);
}

}  // namespace

extern "C" {

/* Also in the test, by ctypes. Types are tc_type; -1: FP8. */
struct probe_tensor {
  int32_t type, format, rank, symbolic;
  int64_t dims[8], min[8], opt[8], max[8];
};

static Dims dims_of(int32_t rank, int64_t const* d) {
  Dims dims{};
  dims.nbDims = rank;
  for (int i = 0; i < rank; ++i) dims.d[i] = d[i];
  return dims;
}
/* A first size of 0: there is no profile. */
static Dims bound_of(int32_t rank, int64_t const* d) { return dims_of(d[0] == 0 ? 0 : rank, d); }
static DataType type_at(probe_tensor const& t) {
  return t.type < 0 ? DataType::kFP8 : tcompile::type_of(t.type);
}
static PluginTensorDesc desc_of(probe_tensor const& t) {
  return {dims_of(t.rank, t.dims), type_at(t), static_cast<TensorFormat>(t.format), 1.0F};
}
static std::vector<PluginTensorDesc> descs(probe_tensor const* t, int32_t n) {
  std::vector<PluginTensorDesc> made;
  for (int i = 0; i < n; ++i) made.push_back(desc_of(t[i]));
  return made;
}
static std::vector<DynamicPluginTensorDesc> dynamic(probe_tensor const* t, int32_t n) {
  std::vector<DynamicPluginTensorDesc> made;
  for (int i = 0; i < n; ++i)
    made.push_back({desc_of(t[i]), bound_of(t[i].rank, t[i].min), bound_of(t[i].rank, t[i].max),
                    bound_of(t[i].rank, t[i].opt)});
  return made;
}

#define PROBE __attribute__((visibility("default")))

PROBE void probe_listen(void (*set)(ILoggerFinder*)) { set(&finder); }
/* What was logged since the last call. */
PROBE char const* probe_log() {
  static std::string text;
  text.swap(messages);
  messages.clear();
  return text.c_str();
}

/* Kinds of fields: 0 INT32, 1 INT64, 2 FLOAT32, 3 no data. */
PROBE void* probe_create(GetCreators get, char const* name, int32_t count, char const* const* names,
                         int32_t const* kinds, int64_t const* values, int32_t const* lengths,
                         int32_t phase) {
  std::vector<std::vector<int64_t>> kept(count);
  std::vector<PluginField> fields;
  for (int i = 0; i < count; ++i) {
    kept[i].resize(lengths[i] + 1);
    for (int j = 0; j < lengths[i]; ++j) {
      if (kinds[i] == 1) kept[i][j] = values[i];
      if (kinds[i] == 0) reinterpret_cast<int32_t*>(kept[i].data())[j] = values[i];
      if (kinds[i] == 2) reinterpret_cast<float*>(kept[i].data())[j] = values[i];
    }
    PluginFieldType const type = kinds[i] == 1   ? PluginFieldType::kINT64
                                 : kinds[i] == 2 ? PluginFieldType::kFLOAT32
                                                 : PluginFieldType::kINT32;
    fields.emplace_back(names[i], kinds[i] == 3 ? nullptr : kept[i].data(), type, lengths[i]);
  }
  PluginFieldCollection const collection{count, fields.data()};
  IPluginCreatorV3One* const creator = creator_of(get, name);
  return creator == nullptr
             ? nullptr
             : creator->createPlugin("probe", &collection, static_cast<TensorRTPhase>(phase));
}

/* As a plan does it: fields that are kept, and a plugin made of them. */
PROBE void* probe_again(GetCreators get, void* plugin) {
  PluginFieldCollection const* const fields = runtime(plugin)->getFieldsToSerialize();
  return creator_of(get, core(plugin)->getPluginName())
      ->createPlugin("again", fields, TensorRTPhase::kRUNTIME);
}
PROBE void* probe_clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
PROBE void* probe_attach(void* plugin) { return runtime(plugin)->attachToContext(nullptr); }
PROBE void probe_destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

/* name|version|namespace|outputs|timing cache id|field=value ... */
PROBE char const* probe_about(void* plugin) {
  static std::string text;
  text = std::string(core(plugin)->getPluginName()) + "|" + core(plugin)->getPluginVersion() + "|" +
         core(plugin)->getPluginNamespace() + "|" + std::to_string(build(plugin)->getNbOutputs()) +
         "|" + build(plugin)->getTimingCacheID() + "|";
  PluginFieldCollection const* const fields = runtime(plugin)->getFieldsToSerialize();
  for (int i = 0; i < fields->nbFields; ++i)
    text += std::string(i > 0 ? " " : "") + fields->fields[i].name + "=" +
            std::to_string(*static_cast<int32_t const*>(fields->fields[i].data));
  return text.c_str();
}

PROBE int32_t probe_types(void* plugin, int32_t inputs, int32_t const* given, int32_t outputs,
                          int32_t* made) {
  std::vector<DataType> in, out(outputs);
  for (int i = 0; i < inputs; ++i) in.push_back(tcompile::type_of(given[i]));
  int32_t const status = build(plugin)->getOutputDataTypes(out.data(), outputs, in.data(), inputs);
  for (int i = 0; i < outputs; ++i) made[i] = tcompile::type_of(out[i]);
  return status;
}

PROBE int32_t probe_supports(void* plugin, int32_t position, int32_t inputs, int32_t outputs,
                             probe_tensor const* all) {
  auto const made = dynamic(all, inputs + outputs);
  return build(plugin)->supportsFormatCombination(position, made.data(), inputs, outputs);
}

/* `symbolic` inputs have sizes that are not known yet; likewise in what comes out. */
PROBE int32_t probe_shapes(void* plugin, int32_t inputs, probe_tensor const* in, int32_t outputs,
                           probe_tensor* out) {
  Builder builder;
  std::vector<DimsExprs> given(inputs), made(outputs);
  for (int i = 0; i < inputs; ++i) {
    given[i].nbDims = in[i].rank;
    for (int d = 0; d < in[i].rank; ++d)
      given[i].d[d] = builder.arithmetic.keep(in[i].dims[d], in[i].symbolic == 0);
  }
  int32_t const status = build(plugin)->getOutputShapes(given.data(), inputs, nullptr, 0,
                                                        made.data(), outputs, builder);
  for (int i = 0; i < outputs && status == 0; ++i) {
    out[i].rank = made[i].nbDims;
    for (int d = 0; d < out[i].rank; ++d) {
      out[i].dims[d] = number_of(*made[i].d[d]);
      out[i].symbolic = out[i].symbolic || !made[i].d[d]->isConstant();
    }
  }
  return status;
}

PROBE int32_t probe_configure(void* plugin, int32_t inputs, probe_tensor const* in, int32_t outputs,
                              probe_tensor const* out) {
  auto const given = dynamic(in, inputs), made = dynamic(out, outputs);
  return build(plugin)->configurePlugin(given.data(), inputs, made.data(), outputs);
}

PROBE uint64_t probe_workspace(void* plugin, int32_t inputs, probe_tensor const* in,
                               int32_t outputs, probe_tensor const* out) {
  auto const given = dynamic(in, inputs), made = dynamic(out, outputs);
  return build(plugin)->getWorkspaceSize(given.data(), inputs, made.data(), outputs);
}

/* onShapeChange alone where there are no pointers, then enqueue. */
PROBE int32_t probe_run(void* plugin, int32_t inputs, probe_tensor const* in, int32_t outputs,
                        probe_tensor const* out, void const* const* from, void* const* to,
                        void* workspace) {
  auto const given = descs(in, inputs), made = descs(out, outputs);
  if (from == nullptr)
    return runtime(plugin)->onShapeChange(given.data(), inputs, made.data(), outputs);
  return runtime(plugin)->enqueue(given.data(), made.data(), from, to, workspace, nullptr);
}

}  /* extern "C" */
