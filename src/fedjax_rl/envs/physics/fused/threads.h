// The kernel on XLA's own threads.
#include <sched.h>
#include <stdlib.h>

namespace {
// One call. XLA's thread pool and the caller take CHUNK vectors at a time until none is left. A task of the pool may start
// after the call has returned: the job lives until its last user leaves, and the caller waits for vectors, not for tasks.
struct Job {
  Arrays arrays;
  long n, blocks, next, done, users;
  int substeps;

  void work() {
    for (long i; (i = __atomic_fetch_add(&next, CHUNK, __ATOMIC_RELAXED)) < blocks;) {
      const long end = i + CHUNK < blocks ? i + CHUNK : blocks;
      run(arrays.in, arrays.out, i, end, n, substeps);
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

XLA_FFI_Error* launch(XLA_FFI_CallFrame* frame, const Arrays& arrays, long n, int substeps) {
  Job* job = static_cast<Job*>(calloc(1, sizeof(Job)));
  if (!job) return refuse(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "fused physics: no memory left");
  job->arrays = arrays;
  job->n = n;
  job->blocks = (n + W - 1) / W;
  job->substeps = substeps;

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
}  // namespace

// The same on the calling thread, without XLA: for tests of bits.
extern "C" void step_here(const float* const* in, float* const* out, long n, int substeps) {
  run(in, out, 0, (n + W - 1) / W, n, substeps);
}
