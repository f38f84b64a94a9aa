/* From the name of an op to its kernels, after everything that can be checked without data. */
#include <cstring>

#include "launchers.h"

namespace {

struct Entry {
  const char* name;
  int32_t (*launch)(const tc::Launch&);
  size_t (*workspace)(const tc_call&);
};

const Entry kEntries[] = {
    {"TcTopKTokens", tc::launch_top_k, tc::workspace_none},
    {"TcSelectTokens", tc::launch_select, tc::workspace_none},
    {"TcGatherTokens", tc::launch_gather, tc::workspace_none},
    {"TcTakeTokens", tc::launch_take, tc::workspace_none},
    {"TcUnmergeTokens", tc::launch_unmerge, tc::workspace_none},
    {"TcReturnTokens", tc::launch_return, tc::workspace_none},
    {"TcFuseTokens", tc::launch_fuse, tc::workspace_none},
    {"TcPartnerTokens", tc::launch_partner, tc::workspace_partner},
    {"TcNearestTokens", tc::launch_nearest, tc::workspace_nearest},
    {"TcMatchTokens", tc::launch_match, tc::workspace_match},
    {"TcMatchAllTokens", tc::launch_match_all, tc::workspace_match_all},
    {"TcMergeTokens", tc::launch_merge, tc::workspace_none},
    {"TcMergeAllTokens", tc::launch_merge_all, tc::workspace_none},
    {"TcCombineMeanTokens", tc::launch_combine_mean, tc::workspace_none},
    {"TcCombinePlainTokens", tc::launch_combine_plain, tc::workspace_none},
    {"TcCombineMlerpTokens", tc::launch_combine_mlerp, tc::workspace_none},
    {"TcCombineDropTokens", tc::launch_combine_drop, tc::workspace_none},
};

const Entry* find(const tc_op_spec* op) {
  for (const Entry& entry : kEntries)
    if (op != nullptr && std::strcmp(entry.name, op->name) == 0) return &entry;
  return nullptr;
}

bool usable(const void* pointer, const tc_tensor& tensor) {
  const uintptr_t size = tensor.type == TC_INT64 ? 8
                         : tensor.type == TC_FLOAT16 || tensor.type == TC_BFLOAT16 ? 2
                                                                                   : 4;
  return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % size == 0;
}

}  // namespace

namespace tc {
size_t workspace_none(const tc_call&) { return 0; }
}  // namespace tc

extern "C" {

size_t tc_workspace(const tc_op_spec* op, const tc_call* call) {
  const Entry* entry = find(op);
  if (entry == nullptr || tc_check(op, call, nullptr, 0) != TC_OK) return 0;
  return (entry->workspace(*call) + 15) / 16 * 16;
}

int32_t tc_launch(const tc_op_spec* op, const tc_call* call, const void* const* inputs,
                  void* const* outputs, void* workspace, size_t workspace_bytes, void* stream) {
  const Entry* entry = find(op);
  if (entry == nullptr) return TC_BAD_OP;
  const int32_t status = tc_check(op, call, nullptr, 0);
  if (status != TC_OK) return status;
  if (inputs == nullptr || outputs == nullptr) return TC_BAD_POINTER;
  for (int i = 0; i < op->inputs; ++i)
    if (!op->input[i].unused && !usable(inputs[i], call->input[i])) return TC_BAD_POINTER;
  for (int i = 0; i < op->outputs; ++i)
    if (!usable(outputs[i], call->output[i])) return TC_BAD_POINTER;
  const size_t bytes = (entry->workspace(*call) + 15) / 16 * 16;
  if (bytes > 0 && (workspace == nullptr || workspace_bytes < bytes ||
                    reinterpret_cast<uintptr_t>(workspace) % 16 != 0))
    return TC_BAD_WORKSPACE;
  return entry->launch({*call, inputs, outputs, workspace, stream});
}

}  /* extern "C" */
