/* What is legal, by the specifications: types, shapes, limits. Host code, no CUDA. */
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "shape_terms.h"
#include "tcompile_ops.h"
#include "tcompile_spec.h"

namespace {

constexpr int kMaxNames = 24;

/* What the names of a specification are in a call. */
struct Names {
  const char* name[kMaxNames];
  int32_t value[kMaxNames];
  int count = 0;

  const int32_t* find(const char* text) const {
    for (int i = 0; i < count; ++i)
      if (std::strcmp(name[i], text) == 0) return &value[i];
    return nullptr;
  }
  void bind(const char* text, int32_t number) {
    if (find(text) || count == kMaxNames) return;
    name[count] = text;
    value[count++] = number;
  }
};

struct Message {
  char* text;
  size_t size;
  const tc_op_spec* op;

  int32_t say(tc_status status, const char* format, ...) const {
    if (text == nullptr || size == 0) return status;
    const int used = std::snprintf(text, size, "%s: ", op ? op->name : "?");
    if (used < 0 || static_cast<size_t>(used) >= size) return status;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
    return status;
  }
};

/* The value of an expression up to its end or a comparison; false: a name is unknown. */
bool evaluate(const char*& text, const Names& names, int64_t* value) {
  tc::Term term;
  for (*value = 0; tc::next_term(text, term);) {
    int64_t number = term.number;
    if (term.name[0]) {
      const int32_t* known = names.find(term.name);
      if (known == nullptr) return false;
      number = *known;
    }
    *value += term.sign * (number / term.divisor);
  }
  return true;
}

bool holds(const char* limit, const Names& names) {
  int64_t left = 0, right = 0;
  if (!evaluate(limit, names, &left)) return false;
  const bool equal = *limit == '=';
  limit += 2;
  if (!evaluate(limit, names, &right)) return false;
  return equal ? left == right : left <= right;
}

bool is_index(const tc_tensor_spec& spec) { return std::strcmp(spec.kind, "index") == 0; }

const char* type_text(int32_t type) {
  static const char* const names[] = {"fp32", "fp16", "bf16", "int32", "int64"};
  return type >= 0 && type <= TC_INT64 ? names[type] : "unknown";
}

/* Types that are allowed, and alike where they must be. */
int32_t check_types(const tc_op_spec* op, const tc_tensor_spec* specs, const tc_tensor* tensors,
                    int count, int32_t* data, int32_t* index, const Message& message) {
  for (int i = 0; i < count; ++i) {
    const tc_tensor_spec& spec = specs[i];
    const int32_t type = tensors[i].type;
    if (!tc_kind_takes(spec.kind, type))
      return message.say(TC_BAD_TYPE, "%s cannot be %s", spec.name, type_text(type));
    int32_t* common = is_index(spec) ? index : std::strcmp(spec.kind, "data") == 0 ? data : nullptr;
    if (common == nullptr) continue;
    if (*common >= 0 && *common != type)
      return message.say(TC_BAD_TYPE, "%s is %s, another tensor of its kind %s", spec.name,
                         type_text(type), type_text(*common));
    *common = type;
  }
  (void)op;
  return TC_OK;
}

int32_t check_inputs(const tc_op_spec* op, const tc_call* call, Names* names,
                     const Message& message) {
  if (op == nullptr || call == nullptr) return message.say(TC_BAD_OP, "no such op");
  int32_t data = -1, index = -1;
  const int32_t status =
      check_types(op, op->input, call->input, op->inputs, &data, &index, message);
  if (status != TC_OK) return status;
  for (int i = 0; i < op->fields; ++i) {
    if (call->field[i] < 0)
      return message.say(TC_BAD_LIMIT, "%s is %d", op->field[i], call->field[i]);
    names->bind(op->field[i], call->field[i]);
  }
  for (int i = 0; i < op->inputs; ++i) {
    if (call->input[i].rank != op->input[i].rank)
      return message.say(TC_BAD_SHAPE, "%s has %d dimensions, not %d", op->input[i].name,
                         call->input[i].rank, op->input[i].rank);
    for (int d = 0; d < op->input[i].rank; ++d) {
      if (call->input[i].dims[d] < 1)
        return message.say(TC_BAD_SHAPE, "%s has a dimension of %d", op->input[i].name,
                           call->input[i].dims[d]);
      if (tc::plain_name(op->input[i].dims[d])) names->bind(op->input[i].dims[d], call->input[i].dims[d]);
    }
  }
  for (int i = 0; i < op->inputs; ++i) {
    for (int d = 0; d < op->input[i].rank; ++d) {
      const char* text = op->input[i].dims[d];
      int64_t want = 0;
      if (!evaluate(text, *names, &want) || want != call->input[i].dims[d])
        return message.say(TC_BAD_SHAPE, "dimension %d of %s is %d, but %s is %lld", d,
                           op->input[i].name, call->input[i].dims[d], op->input[i].dims[d],
                           static_cast<long long>(want));
    }
  }
  const int32_t* batch = names->find("B");
  if (batch != nullptr && *batch > TC_MAX_BATCH)
    return message.say(TC_BAD_LIMIT, "a batch of %d is more than %d", *batch, TC_MAX_BATCH);
  for (int i = 0; i < op->limits; ++i)
    if (!holds(op->limit[i], *names)) {
      char values[160] = {0};
      for (int n = 0; n < names->count; ++n) {
        const size_t used = std::strlen(values);
        std::snprintf(values + used, sizeof values - used, "%s%s=%d", n ? " " : "", names->name[n],
                      names->value[n]);
      }
      return message.say(TC_BAD_LIMIT, "%s does not hold (%s)", op->limit[i], values);
    }
  return TC_OK;
}

}  // namespace

extern "C" {

int32_t tc_api_version(void) { return TC_API_VERSION; }

const char* tc_status_text(int32_t status) {
  switch (status) {
    case TC_OK: return "ok";
    case TC_BAD_TYPE: return "an element type that a tensor cannot have";
    case TC_BAD_SHAPE: return "shapes that contradict each other";
    case TC_BAD_LIMIT: return "a number beyond its limit";
    case TC_BAD_POINTER: return "a pointer that is null or not aligned to its element";
    case TC_BAD_WORKSPACE: return "a workspace that is null or too small";
    case TC_LAUNCH_FAILED: return "the driver refused the launch";
    case TC_BAD_OP: return "no such op";
    default: return "unknown status";
  }
}

int32_t tc_op_count(void) { return sizeof TC_OPS / sizeof TC_OPS[0]; }

const tc_op_spec* tc_op_at(int32_t i) {
  return i >= 0 && i < tc_op_count() ? &TC_OPS[i] : nullptr;
}

const tc_op_spec* tc_op_find(const char* name) {
  for (const tc_op_spec& op : TC_OPS)
    if (name != nullptr && std::strcmp(op.name, name) == 0) return &op;
  return nullptr;
}

int32_t tc_kind_takes(const char* kind, int32_t type) {
  if (std::strcmp(kind, "index") == 0) return type == TC_INT64 || type == TC_INT32;
  if (std::strcmp(kind, "f32") == 0) return type == TC_FLOAT32;
  return type == TC_FLOAT32 || type == TC_FLOAT16 || type == TC_BFLOAT16;
}

int32_t tc_infer(const tc_op_spec* op, tc_call* call, char* text, size_t size) {
  const Message message{text, size, op};
  Names names;
  const int32_t status = check_inputs(op, call, &names, message);
  if (status != TC_OK) return status;
  int32_t data = TC_FLOAT32, table = TC_FLOAT32, index = TC_INT64;
  for (int i = 0; i < op->inputs; ++i) {
    if (is_index(op->input[i])) index = call->input[i].type;
    if (std::strcmp(op->input[i].kind, "data") == 0) data = call->input[i].type;
    if (std::strcmp(op->input[i].kind, "table") == 0) table = call->input[i].type;
  }
  for (int i = 0; i < op->outputs; ++i) {
    const tc_tensor_spec& spec = op->output[i];
    tc_tensor& out = call->output[i];
    out.type = is_index(spec)                           ? index
               : std::strcmp(spec.kind, "data") == 0  ? data
               : std::strcmp(spec.kind, "table") == 0 ? table
                                                        : static_cast<int32_t>(TC_FLOAT32);
    out.rank = spec.rank;
    for (int d = 0; d < spec.rank; ++d) {
      const char* expression = spec.dims[d];
      int64_t value = 0;
      if (!evaluate(expression, names, &value) || value < 1 || value > INT32_MAX)
        return message.say(TC_BAD_SHAPE, "%s would have a dimension %s of %lld", spec.name,
                           spec.dims[d], static_cast<long long>(value));
      out.dims[d] = static_cast<int32_t>(value);
    }
  }
  return TC_OK;
}

int32_t tc_check(const tc_op_spec* op, const tc_call* call, char* text, size_t size) {
  const Message message{text, size, op};
  if (op == nullptr || call == nullptr) return message.say(TC_BAD_OP, "no such op");
  tc_call want = *call;
  const int32_t status = tc_infer(op, &want, text, size);
  if (status != TC_OK) return status;
  /* An index that only comes out may be of either width. */
  bool given = false;
  for (int i = 0; i < op->inputs; ++i) given = given || is_index(op->input[i]);
  int32_t index = -1;
  for (int i = 0; i < op->outputs; ++i) {
    const tc_tensor_spec& spec = op->output[i];
    const tc_tensor& out = call->output[i];
    bool right = out.type == want.output[i].type;
    if (is_index(spec) && !given) {
      right = tc_kind_takes("index", out.type) && (index < 0 || index == out.type);
      index = out.type;
    }
    if (!right) return message.say(TC_BAD_TYPE, "%s cannot be %s", spec.name, type_text(out.type));
    bool same = out.rank == spec.rank;
    for (int d = 0; d < spec.rank; ++d) same = same && out.dims[d] == want.output[i].dims[d];
    if (!same) return message.say(TC_BAD_SHAPE, "%s has another shape than it should", spec.name);
  }
  return TC_OK;
}

}  /* extern "C" */
