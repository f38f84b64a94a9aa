/* Made from the specifications by `python -m tcompile.plugins.header --write`. */
#ifndef TCOMPILE_SPEC_H
#define TCOMPILE_SPEC_H

#include "tcompile_ops.h"

#define TC_PLUGIN_VERSION "1"
#define TC_PLUGIN_NAMESPACE "tcompile"

static const tc_op_spec TC_OPS[] = {
    {"TcTopKTokens", 1, 1, 1, 2,
     {
      {"scores", "data", 2, {"B", "T"}, 0},
     },
     {
      {"index", "index", 2, {"B", "k"}, 0},
     },
     {"k"},
     {"k<=T", "T<=16384"}},
    {"TcSelectTokens", 2, 2, 2, 2,
     {
      {"scores", "data", 2, {"B", "T"}, 0},
      {"fixed", "index", 1, {"prefix"}, 1},
     },
     {
      {"index", "index", 2, {"B", "k"}, 0},
      {"rows", "index", 2, {"B", "prefix+k"}, 0},
     },
     {"k", "prefix"},
     {"k<=T", "prefix+T<=16384"}},
    {"TcGatherTokens", 2, 1, 0, 2,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"index", "index", 2, {"B", "K"}, 0},
     },
     {
      {"y", "data", 3, {"B", "K", "C"}, 0},
     },
     {0},
     {"T<=16384", "K<=16384"}},
    {"TcTakeTokens", 4, 3, 0, 2,
     {
      {"x", "data", 3, {"B", "N", "C"}, 0},
      {"size", "f32", 2, {"B", "N"}, 0},
      {"table", "table", 2, {"N", "E"}, 0},
      {"rows", "index", 2, {"B", "M"}, 0},
     },
     {
      {"y", "data", 3, {"B", "M", "C"}, 0},
      {"new_size", "f32", 2, {"B", "M"}, 0},
      {"new_table", "table", 3, {"B", "M", "E"}, 0},
     },
     {0},
     {"N<=16384", "M<=16384"}},
    {"TcUnmergeTokens", 2, 1, 1, 3,
     {
      {"x", "data", 3, {"B", "K", "C"}, 0},
      {"owner", "index", 2, {"B", "N"}, 0},
     },
     {
      {"y", "data", 3, {"B", "N", "C"}, 0},
     },
     {"k"},
     {"K<=16384", "N<=16384", "k==K"}},
    {"TcReturnTokens", 5, 1, 0, 2,
     {
      {"x", "data", 3, {"B", "N", "C"}, 0},
      {"kept", "data", 3, {"B", "K", "C"}, 0},
      {"index", "index", 2, {"B", "K"}, 0},
      {"slots", "index", 1, {"K"}, 1},
      {"stay", "index", 1, {"N"}, 1},
     },
     {
      {"y", "data", 3, {"B", "N", "C"}, 0},
     },
     {0},
     {"K<=N", "N<=16384"}},
    {"TcFuseTokens", 3, 1, 0, 2,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"weight", "f32", 2, {"B", "T"}, 0},
      {"index", "index", 2, {"B", "K"}, 0},
     },
     {
      {"y", "data", 3, {"B", "1", "C"}, 0},
     },
     {0},
     {"K<=T", "T<=16384"}},
    {"TcPartnerTokens", 2, 2, 0, 2,
     {
      {"a", "data", 3, {"B", "M", "D"}, 0},
      {"b", "data", 3, {"B", "N", "D"}, 0},
     },
     {
      {"partner", "index", 2, {"B", "M"}, 0},
      {"similarity", "f32", 2, {"B", "M"}, 0},
     },
     {0},
     {"M<=16384", "N<=16384"}},
    {"TcNearestTokens", 3, 1, 0, 2,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"index", "index", 2, {"B", "K"}, 0},
      {"slots", "index", 1, {"K"}, 1},
     },
     {
      {"owner", "index", 2, {"B", "T"}, 0},
     },
     {0},
     {"K<=T", "T<=16384"}},
    {"TcMatchTokens", 1, 3, 3, 6,
     {
      {"metric", "data", 3, {"B", "T", "D"}, 0},
     },
     {
      {"keep", "index", 2, {"B", "rest"}, 0},
      {"source", "index", 2, {"B", "r"}, 0},
      {"target", "index", 2, {"B", "r"}, 0},
     },
     {"r", "half", "rest"},
     {"half==T-T/2", "rest==half-r", "1<=r", "1<=rest", "2<=T", "T<=16384"}},
    {"TcMatchAllTokens", 1, 1, 0, 2,
     {
      {"metric", "data", 3, {"B", "T", "D"}, 0},
     },
     {
      {"target", "index", 2, {"B", "T-T/2"}, 0},
     },
     {0},
     {"2<=T", "T<=16384"}},
    {"TcMergeTokens", 6, 2, 0, 3,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"size", "f32", 2, {"B", "T"}, 0},
      {"keep", "index", 2, {"B", "rest"}, 0},
      {"source", "index", 2, {"B", "r"}, 0},
      {"target", "index", 2, {"B", "r"}, 0},
      {"slots", "index", 1, {"T/2"}, 1},
     },
     {
      {"y", "data", 3, {"B", "rest+T/2", "C"}, 0},
      {"new_size", "f32", 2, {"B", "rest+T/2"}, 0},
     },
     {0},
     {"rest+r==T-T/2", "2<=T", "T<=16384"}},
    {"TcMergeAllTokens", 4, 2, 0, 2,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"size", "f32", 2, {"B", "T"}, 0},
      {"target", "index", 2, {"B", "T-T/2"}, 0},
      {"slots", "index", 1, {"T/2"}, 1},
     },
     {
      {"merged", "data", 3, {"B", "T/2", "C"}, 0},
      {"new_size", "f32", 2, {"B", "T/2"}, 0},
     },
     {0},
     {"2<=T", "T<=16384"}},
    {"TcCombineMeanTokens", 8, 3, 0, 3,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"weight", "f32", 2, {"B", "T"}, 0},
      {"size", "f32", 2, {"B", "T"}, 0},
      {"owner", "index", 2, {"B", "N"}, 0},
      {"keep", "index", 2, {"B", "K"}, 0},
      {"source", "index", 2, {"B", "r"}, 0},
      {"slot", "index", 2, {"B", "r"}, 0},
      {"slots", "index", 1, {"K"}, 1},
     },
     {
      {"y", "data", 3, {"B", "K", "C"}, 0},
      {"new_size", "f32", 2, {"B", "K"}, 0},
      {"new_owner", "index", 2, {"B", "N"}, 0},
     },
     {0},
     {"K+r==T", "T<=16384", "N<=16384"}},
    {"TcCombinePlainTokens", 7, 3, 0, 3,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"size", "f32", 2, {"B", "T"}, 0},
      {"owner", "index", 2, {"B", "N"}, 0},
      {"keep", "index", 2, {"B", "K"}, 0},
      {"source", "index", 2, {"B", "r"}, 0},
      {"slot", "index", 2, {"B", "r"}, 0},
      {"slots", "index", 1, {"K"}, 1},
     },
     {
      {"y", "data", 3, {"B", "K", "C"}, 0},
      {"new_size", "f32", 2, {"B", "K"}, 0},
      {"new_owner", "index", 2, {"B", "N"}, 0},
     },
     {0},
     {"K+r==T", "T<=16384", "N<=16384"}},
    {"TcCombineMlerpTokens", 8, 3, 0, 3,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"weight", "f32", 2, {"B", "T"}, 0},
      {"size", "f32", 2, {"B", "T"}, 0},
      {"owner", "index", 2, {"B", "N"}, 0},
      {"keep", "index", 2, {"B", "K"}, 0},
      {"source", "index", 2, {"B", "r"}, 0},
      {"slot", "index", 2, {"B", "r"}, 0},
      {"slots", "index", 1, {"K"}, 1},
     },
     {
      {"y", "data", 3, {"B", "K", "C"}, 0},
      {"new_size", "f32", 2, {"B", "K"}, 0},
      {"new_owner", "index", 2, {"B", "N"}, 0},
     },
     {0},
     {"K+r==T", "T<=16384", "N<=16384"}},
    {"TcCombineDropTokens", 7, 3, 0, 3,
     {
      {"x", "data", 3, {"B", "T", "C"}, 0},
      {"size", "f32", 2, {"B", "T"}, 0},
      {"owner", "index", 2, {"B", "N"}, 0},
      {"keep", "index", 2, {"B", "K"}, 0},
      {"source", "index", 2, {"B", "r"}, 0},
      {"slot", "index", 2, {"B", "r"}, 0},
      {"slots", "index", 1, {"K"}, 1},
     },
     {
      {"y", "data", 3, {"B", "K", "C"}, 0},
      {"new_size", "f32", 2, {"B", "K"}, 0},
      {"new_owner", "index", 2, {"B", "N"}, 0},
     },
     {0},
     {"K+r==T", "T<=16384", "N<=16384"}},
};

#endif
