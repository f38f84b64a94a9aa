/* The launcher of each op: of a call that was checked. */
#ifndef TCOMPILE_LAUNCHERS_H
#define TCOMPILE_LAUNCHERS_H

#include "tcompile_ops.h"

namespace tc {

struct Launch {
  const tc_call& call;
  const void* const* in;
  void* const* out;
  void* workspace;
  void* stream;
};

int32_t launch_top_k(const Launch& l);
int32_t launch_select(const Launch& l);
int32_t launch_gather(const Launch& l);
int32_t launch_take(const Launch& l);
int32_t launch_unmerge(const Launch& l);
int32_t launch_return(const Launch& l);
int32_t launch_fuse(const Launch& l);
int32_t launch_partner(const Launch& l);
int32_t launch_nearest(const Launch& l);
int32_t launch_match(const Launch& l);
int32_t launch_match_all(const Launch& l);
int32_t launch_merge(const Launch& l);
int32_t launch_merge_all(const Launch& l);
int32_t launch_combine_mean(const Launch& l);
int32_t launch_combine_plain(const Launch& l);
int32_t launch_combine_mlerp(const Launch& l);
int32_t launch_combine_drop(const Launch& l);

size_t workspace_none(const tc_call& call);
size_t workspace_partner(const tc_call& call);
size_t workspace_nearest(const tc_call& call);
size_t workspace_match(const tc_call& call);
size_t workspace_match_all(const tc_call& call);

}  // namespace tc
#endif
