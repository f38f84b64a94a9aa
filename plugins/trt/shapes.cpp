#include "shapes.h"

#include <cstring>

#include "call.h"
#include "log.h"
#include "shape_terms.h"

namespace tcompile {

namespace {

using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::IDimensionExpr;
using nvinfer1::IExprBuilder;
constexpr auto kError = nvinfer1::ILogger::Severity::kERROR;

/* What a name stands for: a field, or the first dimension of an input that is called so. */
IDimensionExpr const* named(tc_op_spec const& op, Numbers const& numbers, DimsExprs const* inputs,
                            IExprBuilder& builder, char const* name) {
  for (int i = 0; i < op.fields; ++i)
    if (std::strcmp(op.field[i], name) == 0) return builder.constant(numbers[i]);
  for (int i = 0; i < op.inputs; ++i)
    for (int d = 0; d < op.input[i].rank; ++d)
      if (std::strcmp(op.input[i].dims[d], name) == 0) return inputs[i].d[d];
  return nullptr;
}

IDimensionExpr const* sum(tc_op_spec const& op, Numbers const& numbers, DimsExprs const* inputs,
                          IExprBuilder& builder, char const* text) {
  IDimensionExpr const* total = nullptr;
  tc::Term term;
  while (tc::next_term(text, term)) {
    IDimensionExpr const* value = term.name[0] != 0
                                      ? named(op, numbers, inputs, builder, term.name)
                                      : builder.constant(term.number);
    if (value == nullptr) return nullptr;
    if (term.divisor != 1)
      value = builder.operation(DimensionOperation::kFLOOR_DIV, *value,
                                *builder.constant(term.divisor));
    if (total == nullptr && term.sign < 0) total = builder.constant(0);
    if (value == nullptr) return nullptr;
    total = total == nullptr ? value
                             : builder.operation(term.sign < 0 ? DimensionOperation::kSUB
                                                               : DimensionOperation::kSUM,
                                                 *total, *value);
    if (total == nullptr) return nullptr;
  }
  return total;
}

/* Whether the shapes are legal as far as they are constants. */
bool legal(tc_op_spec const& op, Numbers const& numbers, DimsExprs const* inputs) {
  tc_call call = call_of(numbers);
  for (int i = 0; i < op.inputs; ++i) {
    call.input[i].type = is_kind(op.input[i], "index") ? TC_INT64 : TC_FLOAT32;
    call.input[i].rank = op.input[i].rank;
    for (int d = 0; d < op.input[i].rank; ++d) {
      if (!inputs[i].d[d]->isConstant()) return true;
      int64_t const size = inputs[i].d[d]->getConstantValue();
      call.input[i].dims[d] = size < 0 || size > INT32_MAX ? -1 : static_cast<int32_t>(size);
    }
  }
  char message[320];
  if (tc_infer(&op, &call, message, sizeof message) == TC_OK) return true;
  log(kError, "%s", message);
  return false;
}

}  // namespace

bool output_shapes(tc_op_spec const& op, Numbers const& numbers, DimsExprs const* inputs,
                   DimsExprs* outputs, IExprBuilder& builder) noexcept {
  for (int i = 0; i < op.inputs; ++i)
    if (inputs[i].nbDims != op.input[i].rank) {
      log(kError, "%s: %s has %d dimensions, not %d", op.name, op.input[i].name, inputs[i].nbDims,
          op.input[i].rank);
      return false;
    }
  if (!legal(op, numbers, inputs)) return false;
  for (int i = 0; i < op.outputs; ++i) {
    outputs[i].nbDims = op.output[i].rank;
    for (int d = 0; d < op.output[i].rank; ++d) {
      outputs[i].d[d] = sum(op, numbers, inputs, builder, op.output[i].dims[d]);
      if (outputs[i].d[d] == nullptr) {
        log(kError, "%s: no expression for dimension %s of %s", op.name, op.output[i].dims[d],
            op.output[i].name);
        return false;
      }
    }
  }
  return true;
}

}  // namespace tcompile
