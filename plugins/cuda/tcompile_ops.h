/* The token ops on the GPU: plain C, no CUDA types, nothing allocated.
 *
 * What an op takes is data (`tc_op`), made from its specification in Python; shapes are expressions
 * such as "T", "T-r", "prefix+k" (plugins/shapes.py), read by tc_infer and tc_check. A call is
 * described once (`tc_call`) and can be launched often: on any stream, also under capture.
 *
 * Tensors are dense, row-major, on the device, aligned to their element (16-byte accesses are used
 * where all rows allow it). Indices are int64, as in ONNX, or int32: all of one call alike; inside
 * they are int32. Sums are in fp32, in a fixed order: two runs give the same bits.
 */
#ifndef TCOMPILE_OPS_H
#define TCOMPILE_OPS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define TC_EXPORT __declspec(dllexport)
#else
#define TC_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header: a library and its user must have the same. */
#define TC_API_VERSION 1
#define TC_MAX_TOKENS 16384
#define TC_MAX_BATCH 65535
#define TC_MAX_RANK 3
#define TC_MAX_INPUTS 8
#define TC_MAX_OUTPUTS 3
#define TC_MAX_FIELDS 4

typedef enum tc_status {
  TC_OK = 0,
  TC_BAD_TYPE = 1,      /* an element type that this tensor cannot have */
  TC_BAD_SHAPE = 2,     /* shapes that contradict each other */
  TC_BAD_LIMIT = 3,     /* k > T, more than TC_MAX_TOKENS tokens, ... */
  TC_BAD_POINTER = 4,   /* null, or not aligned to its element */
  TC_BAD_WORKSPACE = 5, /* null or too small */
  TC_LAUNCH_FAILED = 6, /* the driver refused the launch */
  TC_BAD_OP = 7         /* no such op */
} tc_status;

typedef enum tc_type {
  TC_FLOAT32 = 0,
  TC_FLOAT16 = 1,
  TC_BFLOAT16 = 2,
  TC_INT32 = 3,
  TC_INT64 = 4
} tc_type;

/* What an input or output of an op is. */
typedef struct tc_tensor_spec {
  const char* name;
  const char* kind;               /* "data", "table", "f32", "index": plugins/spec.py KINDS */
  int32_t rank;
  const char* dims[TC_MAX_RANK];  /* expressions */
  int32_t unused;                 /* an input that only the ONNX body reads: may be null */
} tc_tensor_spec;

/* One op, from its specification. */
typedef struct tc_op_spec {
  const char* name;               /* ONNX op type and plugin name */
  int32_t inputs, outputs, fields, limits;
  tc_tensor_spec input[TC_MAX_INPUTS];
  tc_tensor_spec output[TC_MAX_OUTPUTS];
  const char* field[TC_MAX_FIELDS];  /* plugin fields: one integer each, all required */
  const char* limit[8];           /* "k<=T", "half==T-T/2" */
} tc_op_spec;

/* A tensor of a call. */
typedef struct tc_tensor {
  int32_t type; /* tc_type */
  int32_t rank;
  int32_t dims[TC_MAX_RANK];
} tc_tensor;

/* A call: all that is known of it before there is data. Order as in the specification. */
typedef struct tc_call {
  tc_tensor input[TC_MAX_INPUTS];
  tc_tensor output[TC_MAX_OUTPUTS];
  int32_t field[TC_MAX_FIELDS];
} tc_call;

TC_EXPORT int32_t tc_api_version(void);
/* In words, never null. */
TC_EXPORT const char* tc_status_text(int32_t status);

TC_EXPORT int32_t tc_op_count(void);
/* The i-th op; null beyond the last. */
TC_EXPORT const tc_op_spec* tc_op_at(int32_t i);
/* The op of that name; null if there is none. */
TC_EXPORT const tc_op_spec* tc_op_find(const char* name);

/* Whether a tensor of a kind can be of an element type. */
TC_EXPORT int32_t tc_kind_takes(const char* kind, int32_t type);

/* Fill in call->output from the inputs and fields. On failure `message` (may be null) names op,
 * tensor or field, and what is wrong. */
TC_EXPORT int32_t tc_infer(const tc_op_spec* op, tc_call* call, char* message, size_t size);

/* Whether the call is legal: types, shapes, limits; outputs included. Messages as above. */
TC_EXPORT int32_t tc_check(const tc_op_spec* op, const tc_call* call, char* message, size_t size);

/* Bytes of workspace that tc_launch needs, aligned to 16; often 0. Of an illegal call: 0. */
TC_EXPORT size_t tc_workspace(const tc_op_spec* op, const tc_call* call);

/* Put the op on the stream (a cudaStream_t). Checks everything that it can without the data; data
 * itself is never trusted: an index beyond its range reads zeros, or writes nothing.
 * Returns without waiting. */
TC_EXPORT int32_t tc_launch(const tc_op_spec* op, const tc_call* call, const void* const* inputs,
                            void* const* outputs, void* workspace, size_t workspace_bytes,
                            void* stream);

#ifdef __cplusplus
}
#endif
#endif
