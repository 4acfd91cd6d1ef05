// What XLA calls, in its plain C interface: that header compiles in a tenth of a second where XLA's C++ one takes several,
// and no C++ library is needed, which Clang of the `ziglang` wheel would first build for a minute.
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

namespace {
// One call. XLA's thread pool and the caller take CHUNK vectors at a time until none is left. A task of the pool may start
// after the call has returned: the job lives until its last user leaves, and the caller waits for vectors, not for tasks.
struct Job {
  const float* in[INPUTS];
  float* out[STATES];
  long n, blocks, next, done, users;
  int substeps;

  void work() {
    for (long i; (i = __atomic_fetch_add(&next, CHUNK, __ATOMIC_RELAXED)) < blocks;) {
      const long end = i + CHUNK < blocks ? i + CHUNK : blocks;
      run(in, out, i, end, n, substeps);
      __atomic_fetch_add(&done, end - i, __ATOMIC_RELEASE);
    }
  }
  void leave() {
    if (__atomic_sub_fetch(&users, 1, __ATOMIC_ACQ_REL) == 0) free(this);
  }
};

void task(void* data) {
  Job* job = static_cast<Job*>(data);
  job->work();
  job->leave();
}

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
}  // namespace

extern "C" XLA_FFI_Error* step(XLA_FFI_CallFrame* frame) {
  for (XLA_FFI_Extension_Base* e = frame->extension_start; e; e = e->next)
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
  Job* job = static_cast<Job*>(calloc(1, sizeof(Job)));
  if (!job) return refuse(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "fused physics: no memory left");
  for (int i = 0; i < INPUTS; i++) job->in[i] = static_cast<float*>(static_cast<XLA_FFI_Buffer*>(frame->args.args[i])->data);
  for (int i = 0; i < STATES; i++) job->out[i] = static_cast<float*>(static_cast<XLA_FFI_Buffer*>(frame->rets.rets[i])->data);
  job->n = n;
  job->blocks = (n + W - 1) / W;
  job->substeps = *static_cast<int32_t*>(static_cast<XLA_FFI_Scalar*>(frame->attrs.attrs[0])->value);

  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args ask{XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, frame->ctx, &threads};
  if (failed(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&ask))) threads = 1;  // no pool: the caller does it all
  const long spare = (job->blocks - 1) / CHUNK, helpers = threads - 1 < spare ? threads - 1 : spare;
  job->users = helpers > 0 ? helpers + 1 : 1;
  for (long i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args add{XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, frame->ctx, task, job};
    if (failed(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&add))) job->leave();
  }
  job->work();
  while (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) < job->blocks) sched_yield();
  job->leave();
  return nullptr;
}

// The same on the calling thread, without XLA: for tests of bits.
extern "C" void step_here(const float* const* in, float* const* out, long n, int substeps) {
  run(in, out, 0, (n + W - 1) / W, n, substeps);
}
