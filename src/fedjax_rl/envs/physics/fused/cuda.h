// The kernel on a GPU, on XLA's stream: a thread a simulation.
#include <cuda_runtime.h>

namespace {
__global__ void one_each(Arrays arrays, long n, int substeps) {
  const long i = blockIdx.x * static_cast<long>(blockDim.x) + threadIdx.x;
  if (i < n) run(arrays.in, arrays.out, i, i + 1, n, substeps);
}

XLA_FFI_Error* launch(XLA_FFI_CallFrame* frame, const Arrays& arrays, long n, int substeps) {
  XLA_FFI_Stream_Get_Args ask{XLA_FFI_Stream_Get_Args_STRUCT_SIZE, nullptr, frame->ctx, nullptr};
  if (failed(frame, frame->api->XLA_FFI_Stream_Get(&ask)))
    return refuse(frame, XLA_FFI_Error_Code_INTERNAL, "fused physics: XLA has no stream for it");
  if (n == 0) return nullptr;
  one_each<<<(n + BLOCK - 1) / BLOCK, BLOCK, 0, static_cast<cudaStream_t>(ask.stream)>>>(arrays, n, substeps);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return nullptr;
  char message[128];
  snprintf(message, sizeof message, "fused physics: CUDA: %s", cudaGetErrorString(error));
  return refuse(frame, XLA_FFI_Error_Code_INTERNAL, message);
}
}  // namespace
