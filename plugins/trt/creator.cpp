#include "creator.h"

#include <exception>
#include <memory>

#include "fields.h"
#include "log.h"
#include "plugin.h"
#include "tcompile_spec.h"

namespace tcompile {

TokenCreator::TokenCreator(tc_op_spec const& op) : op_(op), names_(field_names(op)) {
  for (std::string const& name : names_)
    fields_.emplace_back(name.c_str(), nullptr, nvinfer1::PluginFieldType::kINT32, 1);
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* TokenCreator::createPlugin(nvinfer1::AsciiChar const* name,
                                                nvinfer1::PluginFieldCollection const* fields,
                                                nvinfer1::TensorRTPhase) noexcept {
  Numbers numbers;
  try {
    if (!read_fields(op_, fields, numbers)) return nullptr;
    log(nvinfer1::ILogger::Severity::kVERBOSE, "%s '%s': %s", op_.name, name == nullptr ? "" : name,
        describe(op_, numbers).c_str());
    return new TokenPlugin(op_, numbers);
  } catch (std::exception const& error) {
    log(nvinfer1::ILogger::Severity::kERROR, "%s: not created: %s", op_.name, error.what());
    return nullptr;
  }
}

nvinfer1::PluginFieldCollection const* TokenCreator::getFieldNames() noexcept {
  return &collection_;
}
nvinfer1::AsciiChar const* TokenCreator::getPluginName() const noexcept { return op_.name; }
nvinfer1::AsciiChar const* TokenCreator::getPluginVersion() const noexcept {
  return TC_PLUGIN_VERSION;
}
nvinfer1::AsciiChar const* TokenCreator::getPluginNamespace() const noexcept {
  return TC_PLUGIN_NAMESPACE;
}

std::vector<nvinfer1::IPluginCreatorInterface*> const& creators() {
  static std::vector<std::unique_ptr<TokenCreator>> const owned = [] {
    std::vector<std::unique_ptr<TokenCreator>> made;
    for (int32_t i = 0; i < tc_op_count(); ++i)
      made.push_back(std::make_unique<TokenCreator>(*tc_op_at(i)));
    return made;
  }();
  static std::vector<nvinfer1::IPluginCreatorInterface*> const all = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> each;
    for (auto const& creator : owned) each.push_back(creator.get());
    return each;
  }();
  return all;
}

}  // namespace tcompile
