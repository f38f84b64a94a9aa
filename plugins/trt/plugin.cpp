#include "plugin.h"

#include <exception>
#include <new>

#include "call.h"
#include "log.h"
#include "shapes.h"
#include "tcompile_spec.h"

namespace tcompile {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginCapability;
using nvinfer1::IPluginV3;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr auto kError = nvinfer1::ILogger::Severity::kERROR;

/* Which of the three sizes of a profile. */
enum Bound { kMin, kOpt, kMax };

/* Those of the network where there is no profile, so that the sizes of one were not filled in. */
nvinfer1::Dims const& dims_at(DynamicPluginTensorDesc const& desc, int bound) {
  nvinfer1::Dims const& dims = bound == kMin ? desc.min : bound == kOpt ? desc.opt : desc.max;
  return dims.nbDims == desc.desc.dims.nbDims ? dims : desc.desc.dims;
}

bool known(tc_call const& call, int32_t inputs) {
  for (int i = 0; i < inputs; ++i)
    for (int d = 0; d < call.input[i].rank; ++d)
      if (call.input[i].dims[d] < 0) return false;
  return true;
}

}  // namespace

TokenPlugin::TokenPlugin(tc_op_spec const& op, Numbers const& numbers)
    : op_(op), numbers_(numbers), names_(field_names(op)) {
  identity_ = std::string(op.name) + " " TC_PLUGIN_VERSION " " + describe(op, numbers);
  for (int i = 0; i < op.fields; ++i)
    fields_.emplace_back(names_[i].c_str(), &numbers_[i], nvinfer1::PluginFieldType::kINT32, 1);
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

/* Not member by member: the fields point into the plugin. */
TokenPlugin::TokenPlugin(TokenPlugin const& other) : TokenPlugin(other.op_, other.numbers_) {}

IPluginCapability* TokenPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

IPluginV3* TokenPlugin::clone() noexcept {
  try {
    return new TokenPlugin(*this);
  } catch (std::exception const& error) {
    log(kError, "%s: no copy: %s", op_.name, error.what());
    return nullptr;
  }
}

nvinfer1::AsciiChar const* TokenPlugin::getPluginName() const noexcept { return op_.name; }
nvinfer1::AsciiChar const* TokenPlugin::getPluginVersion() const noexcept {
  return TC_PLUGIN_VERSION;
}
nvinfer1::AsciiChar const* TokenPlugin::getPluginNamespace() const noexcept {
  return TC_PLUGIN_NAMESPACE;
}

bool TokenPlugin::counts_are(int32_t inputs, int32_t outputs) const noexcept {
  if (inputs == op_.inputs && outputs == op_.outputs) return true;
  log(kError, "%s has %d inputs and %d outputs, not %d and %d", op_.name, op_.inputs, op_.outputs,
      inputs, outputs);
  return false;
}

tc_call TokenPlugin::call_at(PluginTensorDesc const* in, PluginTensorDesc const* out) const noexcept {
  tc_call call = call_of(numbers_);
  for (int i = 0; i < op_.inputs; ++i) call.input[i] = tensor_of(in[i].type, in[i].dims);
  for (int i = 0; i < op_.outputs; ++i) call.output[i] = tensor_of(out[i].type, out[i].dims);
  return call;
}

tc_call TokenPlugin::call_within(DynamicPluginTensorDesc const* in, int bound) const noexcept {
  tc_call call = call_of(numbers_);
  for (int i = 0; i < op_.inputs; ++i)
    call.input[i] = tensor_of(in[i].desc.type, dims_at(in[i], bound));
  return call;
}

int32_t TokenPlugin::check(tc_call const& call) const noexcept {
  char message[320];
  int32_t const status = tc_check(&op_, &call, message, sizeof message);
  if (status != TC_OK) log(kError, "%s", message);
  return status;
}

int32_t TokenPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs,
                                     DynamicPluginTensorDesc const*, int32_t outputs) noexcept {
  if (!counts_are(inputs, outputs)) return TC_BAD_SHAPE;
  for (int bound : {kMin, kOpt, kMax}) {
    tc_call call = call_within(in, bound);
    if (!known(call, inputs)) continue;
    char message[320];
    int32_t const status = tc_infer(&op_, &call, message, sizeof message);
    if (status == TC_OK) continue;
    log(kError, "%s (%s of the profile)", message,
        bound == kMin   ? "min"
        : bound == kOpt ? "opt"
                        : "max");
    return status;
  }
  return TC_OK;
}

int32_t TokenPlugin::getOutputDataTypes(DataType* types, int32_t outputs, DataType const* given,
                                        int32_t inputs) const noexcept {
  if (!counts_are(inputs, outputs)) return TC_BAD_TYPE;
  for (int o = 0; o < outputs; ++o) {
    types[o] = is_kind(op_.output[o], "index") ? DataType::kINT64 : DataType::kFLOAT;
    if (is_kind(op_.output[o], "f32")) continue;
    for (int i = 0; i < inputs; ++i)
      if (is_kind(op_.input[i], op_.output[o].kind)) types[o] = given[i];
  }
  return TC_OK;
}

int32_t TokenPlugin::getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*,
                                     int32_t shape_inputs, DimsExprs* out, int32_t outputs,
                                     nvinfer1::IExprBuilder& builder) noexcept {
  if (!counts_are(inputs, outputs)) return TC_BAD_SHAPE;
  if (shape_inputs != 0) {
    log(kError, "%s takes no shape inputs", op_.name);
    return TC_BAD_SHAPE;
  }
  return output_shapes(op_, numbers_, in, out, builder) ? TC_OK : TC_BAD_SHAPE;
}

bool TokenPlugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* all,
                                            int32_t inputs, int32_t outputs) noexcept {
  tc_tensor_spec const* const spec = spec_at(op_, position);
  if (spec == nullptr || inputs != op_.inputs || outputs != op_.outputs) return false;
  PluginTensorDesc const& desc = all[position].desc;
  if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (!tc_kind_takes(spec->kind, type_of(desc.type))) return false;
  for (int i = 0; i < position; ++i)
    if (is_kind(*spec_at(op_, i), spec->kind)) return all[i].desc.type == desc.type;
  /* An index that only comes out is as wide as ONNX has it. */
  return position < inputs || !is_kind(*spec, "index") || desc.type == DataType::kINT64;
}

int32_t TokenPlugin::getNbOutputs() const noexcept { return op_.outputs; }

size_t TokenPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t inputs,
                                     DynamicPluginTensorDesc const*,
                                     int32_t outputs) const noexcept {
  if (!counts_are(inputs, outputs)) return 0;
  tc_call call = call_within(in, kMax);
  char message[320];
  if (tc_infer(&op_, &call, message, sizeof message) != TC_OK) {
    log(kError, "%s (no workspace is asked for)", message);
    return 0;
  }
  return tc_workspace(&op_, &call);
}

char const* TokenPlugin::getTimingCacheID() noexcept { return identity_.c_str(); }
char const* TokenPlugin::getMetadataString() noexcept { return identity_.c_str(); }

int32_t TokenPlugin::onShapeChange(PluginTensorDesc const* in, int32_t inputs,
                                   PluginTensorDesc const* out, int32_t outputs) noexcept {
  if (!counts_are(inputs, outputs)) return TC_BAD_SHAPE;
  return check(call_at(in, out));
}

int32_t TokenPlugin::enqueue(PluginTensorDesc const* in_desc, PluginTensorDesc const* out_desc,
                             void const* const* in, void* const* out, void* workspace,
                             cudaStream_t stream) noexcept {
  for (int i = 0; i < op_.inputs + op_.outputs; ++i) {
    PluginTensorDesc const& desc = i < op_.inputs ? in_desc[i] : out_desc[i - op_.inputs];
    if (desc.format == nvinfer1::TensorFormat::kLINEAR) continue;
    log(kError, "%s: %s is not dense", op_.name, spec_at(op_, i)->name);
    return TC_BAD_SHAPE;
  }
  tc_call const call = call_at(in_desc, out_desc);
  /* What getWorkspaceSize asked for suits this call or a larger one. */
  int32_t const status =
      tc_launch(&op_, &call, in, out, workspace, tc_workspace(&op_, &call), stream);
  if (status != TC_OK && check(call) == TC_OK)
    log(kError, "%s: %s", op_.name, tc_status_text(status));
  return status;
}

IPluginV3* TokenPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

nvinfer1::PluginFieldCollection const* TokenPlugin::getFieldsToSerialize() noexcept {
  return &collection_;
}

}  // namespace tcompile
