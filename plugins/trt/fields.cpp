#include "fields.h"

#include <cstring>

#include "log.h"
#include "shape_terms.h"

namespace tcompile {

namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
constexpr auto kError = nvinfer1::ILogger::Severity::kERROR;
constexpr char kPrefix[] = "plugin_";

/* Position of the attribute that a field is for; -1: there is none. */
int find(tc_op_spec const& op, char const* name) {
  if (name == nullptr) return -1;
  size_t const skipped = std::strncmp(name, kPrefix, sizeof kPrefix - 1) == 0 ? sizeof kPrefix - 1 : 0;
  for (int i = 0; i < op.fields; ++i)
    if (std::strcmp(op.field[i], name) == 0 || std::strcmp(op.field[i], name + skipped) == 0) return i;
  return -1;
}

bool read_number(tc_op_spec const& op, PluginField const& field, int32_t& number) {
  int64_t value = 0;
  if (field.data == nullptr || field.length != 1) {
    log(kError, "%s: field %s has %d values, not one", op.name, field.name,
        field.data == nullptr ? 0 : field.length);
    return false;
  }
  if (field.type == PluginFieldType::kINT64) {
    std::memcpy(&value, field.data, sizeof value);
  } else if (field.type == PluginFieldType::kINT32) {
    int32_t narrow = 0;
    std::memcpy(&narrow, field.data, sizeof narrow);
    value = narrow;
  } else {
    log(kError, "%s: field %s is of field type %d, but must be INT32 or INT64", op.name, field.name,
        static_cast<int>(field.type));
    return false;
  }
  if (value < 0 || value > INT32_MAX) {
    log(kError, "%s: field %s is %lld", op.name, field.name, static_cast<long long>(value));
    return false;
  }
  number = static_cast<int32_t>(value);
  return true;
}

/* The value of an expression where it has no other names than fields. */
bool known(tc_op_spec const& op, Numbers const& numbers, char const*& text, int64_t& value) {
  tc::Term term;
  bool all = true;
  for (value = 0; tc::next_term(text, term);) {
    int64_t number = term.number;
    if (term.name[0] != 0) {
      int const i = find(op, term.name);
      all = all && i >= 0;
      number = i >= 0 ? numbers[i] : 0;
    }
    value += term.sign * (number / term.divisor);
  }
  return all;
}

bool limits_hold(tc_op_spec const& op, Numbers const& numbers) {
  for (int i = 0; i < op.limits; ++i) {
    char const* text = op.limit[i];
    int64_t left = 0, right = 0;
    bool all = known(op, numbers, text, left);
    bool const equal = *text == '=';
    text += 2;
    all = known(op, numbers, text, right) && all;
    if (all && (equal ? left != right : left > right)) {
      log(kError, "%s: %s does not hold where %s", op.name, op.limit[i],
          describe(op, numbers).c_str());
      return false;
    }
  }
  return true;
}

}  // namespace

std::vector<std::string> field_names(tc_op_spec const& op) {
  std::vector<std::string> names;
  for (int i = 0; i < op.fields; ++i) names.push_back(std::string(kPrefix) + op.field[i]);
  return names;
}

bool read_fields(tc_op_spec const& op, nvinfer1::PluginFieldCollection const* fields,
                 Numbers& numbers) {
  std::array<bool, TC_MAX_FIELDS> given{};
  numbers = {};
  int const count = fields == nullptr || fields->fields == nullptr ? 0 : fields->nbFields;
  for (int i = 0; i < count; ++i) {
    PluginField const& field = fields->fields[i];
    int const at = find(op, field.name);
    if (at < 0) {
      log(kError, "%s: there is no field %s", op.name, field.name == nullptr ? "" : field.name);
      return false;
    }
    if (given[at]) {
      log(kError, "%s: field %s is given twice", op.name, op.field[at]);
      return false;
    }
    if (!read_number(op, field, numbers[at])) return false;
    given[at] = true;
  }
  for (int i = 0; i < op.fields; ++i)
    if (!given[i]) {
      log(kError, "%s: field %s%s is missing", op.name, kPrefix, op.field[i]);
      return false;
    }
  return limits_hold(op, numbers);
}

std::string describe(tc_op_spec const& op, Numbers const& numbers) {
  std::string text;
  for (int i = 0; i < op.fields; ++i)
    text += (i > 0 ? " " : "") + std::string(op.field[i]) + "=" + std::to_string(numbers[i]);
  return text;
}

}  // namespace tcompile
