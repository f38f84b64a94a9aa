/* The creators: one for each op. */
#ifndef TCOMPILE_TRT_CREATOR_H
#define TCOMPILE_TRT_CREATOR_H

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "tcompile_ops.h"

namespace tcompile {

class TokenCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit TokenCreator(tc_op_spec const& op);
  TokenCreator(TokenCreator const&) = delete;

  /* Null where the fields are not those of the op; the logger has the reason. */
  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name,
                                    nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

 private:
  tc_op_spec const& op_;
  std::vector<std::string> names_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

/* One for each op, in the order of the specification; they live as long as the library. */
std::vector<nvinfer1::IPluginCreatorInterface*> const& creators();

}  // namespace tcompile
#endif
