#include "call.h"

#include <cstring>

namespace tcompile {

using nvinfer1::DataType;

int32_t type_of(DataType type) noexcept {
  switch (type) {
    case DataType::kFLOAT: return TC_FLOAT32;
    case DataType::kHALF: return TC_FLOAT16;
    case DataType::kBF16: return TC_BFLOAT16;
    case DataType::kINT32: return TC_INT32;
    case DataType::kINT64: return TC_INT64;
    default: return -1;
  }
}

DataType type_of(int32_t type) noexcept {
  switch (type) {
    case TC_FLOAT16: return DataType::kHALF;
    case TC_BFLOAT16: return DataType::kBF16;
    case TC_INT32: return DataType::kINT32;
    case TC_INT64: return DataType::kINT64;
    default: return DataType::kFLOAT;
  }
}

bool is_kind(tc_tensor_spec const& spec, char const* kind) noexcept {
  return std::strcmp(spec.kind, kind) == 0;
}

tc_tensor_spec const* spec_at(tc_op_spec const& op, int32_t position) noexcept {
  if (position < 0 || position >= op.inputs + op.outputs) return nullptr;
  return position < op.inputs ? &op.input[position] : &op.output[position - op.inputs];
}

tc_tensor tensor_of(DataType type, nvinfer1::Dims const& dims) noexcept {
  tc_tensor tensor{};
  tensor.type = type_of(type);
  tensor.rank = dims.nbDims >= 0 && dims.nbDims <= TC_MAX_RANK ? dims.nbDims : -1;
  for (int d = 0; d < tensor.rank; ++d)
    tensor.dims[d] = dims.d[d] < 0 || dims.d[d] > INT32_MAX ? -1 : static_cast<int32_t>(dims.d[d]);
  return tensor;
}

tc_call call_of(Numbers const& numbers) noexcept {
  tc_call call{};
  for (int i = 0; i < TC_MAX_FIELDS; ++i) call.field[i] = numbers[i];
  return call;
}

}  // namespace tcompile
