#include "log.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace tcompile {

namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

/* ILoggerFinder got a base class in TensorRT 11: its methods moved within the table of virtual
 * functions. A finder is called only where the process has the TensorRT of our headers. */
bool finder_is_of_our_headers() noexcept {
  char const* const libraries[] = {"libnvinfer.so.10", "libnvinfer_lean.so.10",
                                   "libnvinfer_dispatch.so.10"};
  bool has_ten = false;
  for (char const* library : libraries) {
    void* const handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) continue;
    dlclose(handle);
    has_ten = true;
  }
  return has_ten == (NV_TENSORRT_MAJOR == 10);
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
  logger_finder = finder != nullptr && finder_is_of_our_headers() ? finder : nullptr;
}

void log(nvinfer1::ILogger::Severity severity, char const* format, ...) noexcept {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  nvinfer1::ILoggerFinder* const finder = logger_finder;
  nvinfer1::ILogger* const logger = finder != nullptr ? finder->findLogger() : nullptr;
  if (logger != nullptr)
    logger->log(severity, text);
  else if (severity <= nvinfer1::ILogger::Severity::kERROR)
    std::fprintf(stderr, "tcompile plugins: %s\n", text);
}

}  // namespace tcompile
