/* One plugin class for all token ops: what differs between them is data (tcompile_spec.h). */
#ifndef TCOMPILE_TRT_PLUGIN_H
#define TCOMPILE_TRT_PLUGIN_H

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "fields.h"
#include "tcompile_ops.h"

namespace tcompile {

class TokenPlugin final : public nvinfer1::IPluginV3,
                          public nvinfer1::IPluginV3OneCore,
                          public nvinfer1::IPluginV3OneBuild,
                          public nvinfer1::IPluginV3OneRuntime {
 public:
  TokenPlugin(tc_op_spec const& op, Numbers const& numbers);

  /* IPluginV3 */
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  /* Core */
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

  /* Build. Methods with a status return 0, or else say through the logger what is wrong. */
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out,
                          int32_t outputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs,
                             nvinfer1::DataType const* given, int32_t inputs) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
                          nvinfer1::DimsExprs const* shapes, int32_t shape_inputs,
                          nvinfer1::DimsExprs* out, int32_t outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* all,
                                 int32_t inputs, int32_t outputs) noexcept override;
  int32_t getNbOutputs() const noexcept override;
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out,
                          int32_t outputs) const noexcept override;
  char const* getTimingCacheID() noexcept override;
  char const* getMetadataString() noexcept override;

  /* Runtime */
  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                        nvinfer1::PluginTensorDesc const* out, int32_t outputs) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* in_desc,
                  nvinfer1::PluginTensorDesc const* out_desc, void const* const* in,
                  void* const* out, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  TokenPlugin(TokenPlugin const& other);
  bool counts_are(int32_t inputs, int32_t outputs) const noexcept;
  tc_call call_at(nvinfer1::PluginTensorDesc const* in,
                  nvinfer1::PluginTensorDesc const* out) const noexcept;
  tc_call call_within(nvinfer1::DynamicPluginTensorDesc const* in, int bound) const noexcept;
  int32_t check(tc_call const& call) const noexcept;

  tc_op_spec const& op_;
  Numbers numbers_;
  std::string identity_; /* name and fields: all that a timing depends on beside shapes */
  std::vector<std::string> names_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace tcompile
#endif
