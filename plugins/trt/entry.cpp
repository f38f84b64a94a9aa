/* What a process sees of the library: TensorRT's two entry points, and strings that
 * `tcompile plugins check` reads from the file without loading it (plugins/check.py). */
#include <NvInferRuntime.h>

#include "build_info.h"
#include "creator.h"
#include "log.h"
#include "tcompile_plugins.h"
#include "tcompile_spec.h"

#define TC_TEXT_OF(x) #x
#define TC_TEXT(x) TC_TEXT_OF(x)

extern "C" {

/* key=value, separated by spaces. */
TC_EXPORT extern char const tcompile_plugins_version[] =
    "package=" TC_BUILD_PACKAGE " plugin=" TC_PLUGIN_VERSION " api=" TC_TEXT(TC_API_VERSION)
    " tensorrt=" TC_BUILD_TENSORRT " cuda=" TC_BUILD_CUDA " architectures=" TC_BUILD_ARCHITECTURES
    " specification=" TC_BUILD_SPECIFICATION;

/* Names of the plugins, separated by spaces. */
TC_EXPORT extern char const tcompile_plugins_table[] = TC_BUILD_OPS;

TC_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  auto const& all = tcompile::creators();
  count = static_cast<int32_t>(all.size());
  return all.data();
}

TC_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  tcompile::set_logger_finder(finder);
}

}  /* extern "C" */

namespace tcompile {

int32_t register_plugins(nvinfer1::IPluginRegistry& registry) noexcept {
  int32_t taken = 0;
  for (nvinfer1::IPluginCreatorInterface* creator : creators()) {
    if (registry.registerCreator(*creator, TC_PLUGIN_NAMESPACE))
      ++taken;
    else
      log(nvinfer1::ILogger::Severity::kWARNING, "%s is in the registry already",
          static_cast<TokenCreator*>(creator)->getPluginName());
  }
  return taken;
}

}  // namespace tcompile

#if defined(TCOMPILE_REGISTER_ON_LOAD)
namespace {
[[maybe_unused]] int32_t const registered =
    getPluginRegistry() != nullptr ? tcompile::register_plugins(*getPluginRegistry()) : 0;
}
#endif
