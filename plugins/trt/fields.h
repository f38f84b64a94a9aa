/* The fields of a plugin: one whole number for each attribute of its op.
 *
 * The creator offers them as `plugin_<attribute>`. TensorRT's ONNX parser reads a field from a node's
 * attribute of that name, and refuses int64 tensors, which is what the attributes themselves are for
 * the function body (plugins/spec.py): so a node has both, and serves both. */
#ifndef TCOMPILE_TRT_FIELDS_H
#define TCOMPILE_TRT_FIELDS_H

#include <NvInferRuntime.h>

#include <array>
#include <string>
#include <vector>

#include "tcompile_ops.h"

namespace tcompile {

using Numbers = std::array<int32_t, TC_MAX_FIELDS>;

/* The names that the creator offers, in the order of the specification. */
std::vector<std::string> field_names(tc_op_spec const& op);

/* Read `fields`, each INT64 or INT32 and of length 1, under the offered name or the bare one.
 * Returns false where one is missing, unknown, given twice, of another type, negative, beyond int32,
 * or contradicts another by the limits of the op; says so through the logger. */
bool read_fields(tc_op_spec const& op, nvinfer1::PluginFieldCollection const* fields,
                 Numbers& numbers);

/* `k=5 prefix=1`. */
std::string describe(tc_op_spec const& op, Numbers const& numbers);

}  // namespace tcompile
#endif
