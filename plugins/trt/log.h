/* Messages of the plugins, to the logger of the TensorRT that loaded them. */
#ifndef TCOMPILE_TRT_LOG_H
#define TCOMPILE_TRT_LOG_H

#include <NvInferRuntime.h>

namespace tcompile {

/* Where the logger comes from; null, or a finder of another TensorRT than the headers': stderr. */
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

/* Errors go to the logger, or to stderr where there is none; anything less only to a logger. */
void log(nvinfer1::ILogger::Severity severity, char const* format, ...) noexcept
    __attribute__((format(printf, 2, 3)));

}  // namespace tcompile
#endif
