/* For a program that links the plugins in, instead of loading the library:
 *
 *   tcompile::register_plugins(*getPluginRegistry());
 *
 * before an engine with token ops is built or deserialised. Link `tcompile::plugins_static`, or
 * `tcompile::plugins`. (With -DTCOMPILE_REGISTER_ON_LOAD=ON the static library does it by itself
 * when the program starts.) */
#ifndef TCOMPILE_PLUGINS_H
#define TCOMPILE_PLUGINS_H

#include <NvInferRuntime.h>

#include "tcompile_ops.h"

namespace tcompile {

/* Put the creators into the registry; those that are there already stay. Returns how many it took,
 * and says through its logger which it did not. */
TC_EXPORT int32_t register_plugins(nvinfer1::IPluginRegistry& registry) noexcept;

}  // namespace tcompile
#endif
