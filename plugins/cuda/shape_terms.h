/* The expressions of shapes and limits, term by term: `T-r`, `T/2`, `prefix+k` (plugins/shapes.py). */
#ifndef TCOMPILE_SHAPE_TERMS_H
#define TCOMPILE_SHAPE_TERMS_H

#include <cstdint>
#include <cstring>

namespace tc {

/* A term: sign * (name or number) / divisor, rounded down. */
struct Term {
  int sign = 1;
  char name[24] = {0}; /* empty: it is a number */
  int32_t number = 0;
  int32_t divisor = 1;
};

/* Read a term and move `text` behind it; false at the end of the text, or at a comparison. */
inline bool next_term(const char*& text, Term& term) {
  term = Term();
  if (*text == '+' || *text == '-') term.sign = *text++ == '-' ? -1 : 1;
  size_t n = 0;
  bool digits = true;
  while ((*text >= '0' && *text <= '9') || (*text >= 'a' && *text <= 'z') ||
         (*text >= 'A' && *text <= 'Z') || *text == '_') {
    digits = digits && *text <= '9';
    if (n + 1 < sizeof term.name) term.name[n++] = *text;
    ++text;
  }
  if (n == 0) return false;
  if (digits) {
    for (size_t i = 0; i < n; ++i) term.number = 10 * term.number + (term.name[i] - '0');
    term.name[0] = 0;
  } else {
    term.name[n] = 0;
  }
  if (*text == '/') {
    term.divisor = 0;
    for (++text; *text >= '0' && *text <= '9'; ++text) term.divisor = 10 * term.divisor + *text - '0';
  }
  return true;
}

/* Whether an expression is just a name, and so can be bound by a shape. */
inline bool plain_name(const char* text) {
  Term term;
  return next_term(text, term) && *text == 0 && term.name[0] && term.sign > 0 && term.divisor == 1;
}

}  // namespace tc
#endif
