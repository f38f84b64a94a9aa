/* Shapes of outputs as TensorRT's expressions, from those of the specification. */
#ifndef TCOMPILE_TRT_SHAPES_H
#define TCOMPILE_TRT_SHAPES_H

#include <NvInferRuntime.h>

#include "fields.h"
#include "tcompile_ops.h"

namespace tcompile {

/* Fill in the dimensions of all outputs. False where an input has another rank than it should, or
 * where all that is known already is illegal, such as k > T; says so through the logger. */
bool output_shapes(tc_op_spec const& op, Numbers const& numbers, nvinfer1::DimsExprs const* inputs,
                   nvinfer1::DimsExprs* outputs, nvinfer1::IExprBuilder& builder) noexcept;

}  // namespace tcompile
#endif
