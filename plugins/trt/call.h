/* From TensorRT's descriptions of tensors to those of the kernels' library. */
#ifndef TCOMPILE_TRT_CALL_H
#define TCOMPILE_TRT_CALL_H

#include <NvInferRuntime.h>

#include "fields.h"
#include "tcompile_ops.h"

namespace tcompile {

/* -1: no op takes it. */
int32_t type_of(nvinfer1::DataType type) noexcept;
nvinfer1::DataType type_of(int32_t type) noexcept;

/* Whether it is of this kind: "data", "table", "f32", "index". */
bool is_kind(tc_tensor_spec const& spec, char const* kind) noexcept;

/* The spec of the tensor at a position, inputs first; null beyond the last. */
tc_tensor_spec const* spec_at(tc_op_spec const& op, int32_t position) noexcept;

/* A tensor of a call; rank -1, which is never legal, where TensorRT's is larger than any of ours. */
tc_tensor tensor_of(nvinfer1::DataType type, nvinfer1::Dims const& dims) noexcept;

/* A call without tensors. */
tc_call call_of(Numbers const& numbers) noexcept;

}  // namespace tcompile
#endif
