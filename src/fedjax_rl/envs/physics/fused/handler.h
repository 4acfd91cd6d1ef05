// What XLA calls, in its plain C interface: that header compiles in a tenth of a second where XLA's C++ one takes several,
// and no C++ library is needed, which Clang of the `ziglang` wheel would first build for a minute.
#include <stdio.h>

#include "xla/ffi/api/c_api.h"

namespace {
XLA_FFI_Error* refuse(XLA_FFI_CallFrame* frame, XLA_FFI_Error_Code code, const char* message) {
  XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message, code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

bool failed(XLA_FFI_CallFrame* frame, XLA_FFI_Error* error) {
  if (!error) return false;
  XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, error};
  frame->api->XLA_FFI_Error_Destroy(&args);
  return true;
}

// Whether a buffer holds float32 rows [..., columns], n of them in all.
bool fits(const XLA_FFI_Buffer* buffer, long columns, long n) {
  if (buffer->dtype != XLA_FFI_DataType_F32 || buffer->rank < 1 || buffer->dims[buffer->rank - 1] != columns) return false;
  long rows = 1;
  for (int i = 0; i + 1 < buffer->rank; i++) rows *= buffer->dims[i];
  return rows == n;
}

// The arrays of a call, row-major.
struct Arrays {
  const float* in[INPUTS];
  float* out[STATES];
};

// Runs the kernel over n simulations; below, for the machine at hand.
XLA_FFI_Error* launch(XLA_FFI_CallFrame* frame, const Arrays& arrays, long n, int substeps);
}  // namespace

extern "C" XLA_FFI_Error* step(XLA_FFI_CallFrame* frame) {
  for (auto* e = frame->extension_start; e; e = e->next)  // of a type whose name jaxlib 0.11 changed
    if (e->type == XLA_FFI_Extension_Metadata) {  // XLA asks once which version of the interface this is
      XLA_FFI_Metadata* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(e)->metadata;
      metadata->api_version.major_version = XLA_FFI_API_MAJOR;
      metadata->api_version.minor_version = XLA_FFI_API_MINOR;
      metadata->traits = 0;
      return nullptr;
    }
  if (frame->args.size != INPUTS || frame->rets.size != STATES || frame->attrs.size != 1)
    return refuse(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "fused physics: another number of arrays than it was made for");
  long n = 1;
  const XLA_FFI_Buffer* first = static_cast<XLA_FFI_Buffer*>(frame->args.args[0]);
  for (int i = 0; i + 1 < first->rank; i++) n *= first->dims[i];
  char message[128];
  for (int i = 0; i < INPUTS + STATES; i++) {
    const int column = i < INPUTS ? i : i - INPUTS;
    const void* buffer = i < INPUTS ? frame->args.args[column] : frame->rets.rets[column];
    if (fits(static_cast<const XLA_FFI_Buffer*>(buffer), COLUMNS[column], n)) continue;
    snprintf(message, sizeof message, "fused physics: %s %d must be float32 [%ld, %ld]", i < INPUTS ? "input" : "output",
             column, n, COLUMNS[column]);
    return refuse(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, message);
  }
  Arrays arrays;
  for (int i = 0; i < INPUTS; i++) arrays.in[i] = static_cast<float*>(static_cast<XLA_FFI_Buffer*>(frame->args.args[i])->data);
  for (int i = 0; i < STATES; i++) arrays.out[i] = static_cast<float*>(static_cast<XLA_FFI_Buffer*>(frame->rets.rets[i])->data);
  return launch(frame, arrays, n, *static_cast<int32_t*>(static_cast<XLA_FFI_Scalar*>(frame->attrs.attrs[0])->value));
}
